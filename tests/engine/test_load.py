"""How much of the processor this process gets."""

from hemafast.engine.load import Load


def test_the_load_is_the_share_of_the_wanted_time_that_all_threads_waited(tmp_path):
    for thread, times in {"1": "600 100 7", "2": "150 150 3", "3": "gone"}.items():
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(times)
    load = Load.now(tmp_path)
    assert load == Load({"1": (600, 100), "2": (150, 150)})
    assert load.others_since(Load()) == 0.25
    assert load.others_since(Load({"1": (550, 50), "2": (150, 150)})) == 0.5
    assert load.wanted_since(Load({"1": (550, 50)})) == 400e-9  # the second thread is new


def test_threads_that_have_ended_hide_nothing_of_the_others():
    before = Load({"1": (100, 10), "2": (9_000, 10)})
    now = Load({"1": (190, 20)})
    assert now.others_since(before) == 0.1
    assert now.wanted_since(before) == 100e-9


def test_a_kernel_that_does_not_tell_is_no_load(tmp_path):
    assert Load.now(tmp_path).others_since(Load()) == 0.0
    assert Load.now(tmp_path / "nowhere") == Load()


def test_this_process_has_run():
    assert Load.now().wanted_since(Load()) > 0
