"""How much of the processor this process gets."""

from hemafast.engine.load import Load


def test_the_load_is_the_share_of_the_wanted_time_that_all_threads_waited(tmp_path):
    for thread, times in {"1": "600 100 7", "2": "150 150 3", "3": "gone"}.items():
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(times)
    load = Load.now(tmp_path)
    assert load == Load(ran=750, waited=250)
    assert load.others_since(Load()) == 0.25
    assert load.others_since(Load(ran=700, waited=200)) == 0.5


def test_a_kernel_that_does_not_tell_is_no_load(tmp_path):
    assert Load.now(tmp_path).others_since(Load()) == 0.0
    assert Load(ran=5).others_since(Load(ran=9, waited=9)) == 0.0  # threads have ended


def test_this_process_has_run():
    assert Load.now().ran > 0
