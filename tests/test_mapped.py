"""A mapped file that is cut ends the process with a line that names it, whichever thread reads it."""

import gc
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from hemafast import mapped
from hemafast.mapped import map_file

CUT = """
    import ctypes, os, sys, threading
    from pathlib import Path
    from hemafast.mapped import map_file

    def in_a_thread(read):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()

    def while_another_keeps_the_interpreter(read):
        libc, threads = ctypes.PyDLL(None), [ctypes.c_ulong() for _ in range(8)]  # a PyDLL never gives up the lock
        beyond = ctypes.c_void_p(maps[1][90].ctypes.data)
        for thread in threads:
            libc.pthread_create(ctypes.byref(thread), None, libc.strlen, beyond)
        for thread in threads:
            libc.pthread_join(thread, None)

    other, file = map(Path, sys.argv[1:3])
    maps = map_file(other), map_file(file, offset=100, shape=(100, 1000))
    os.truncate(file, 5000)
    maps[1][3].sum()  # is still there
    print("reading", flush=True)
    {where}(lambda: maps[1][90].sum())
"""
WHERE = {
    "main thread": "(lambda read: read())",
    "thread": "in_a_thread",
    "native threads": "while_another_keeps_the_interpreter",
}


@pytest.mark.parametrize("where", WHERE)
def test_reading_beyond_the_end_of_a_cut_file_is_one_line_and_exit_code_2(tmp_path, where):
    paths = tmp_path / "other.npy", tmp_path / "cut\x1b[31m.npy"
    for path in paths:
        path.write_bytes(bytes(100_100))
    code = textwrap.dedent(CUT).replace("{where}", WHERE[where])
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "reading\n")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {tmp_path}/cut\\x1b[31m.npy was cut while it was read. Restore it or run")


def test_other_bus_errors_end_the_process_as_they_would_without_us(tmp_path):
    code = f"""
        import mmap, os
        from pathlib import Path
        from hemafast.mapped import map_file
        path = Path({str(tmp_path / "a")!r})
        path.write_bytes(bytes(10_000))
        map_file(path)
        with path.open("rb") as file:
            own = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        os.truncate(path, 10)
        own[9000]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-7, "")


def test_a_map_is_forgotten_with_its_last_view(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(100)))

    def known():
        gc.collect()
        return int(np.count_nonzero(mapped._maps[:, 1]))

    before = known()
    row = map_file(tmp_path / "a", offset=10, shape=(9, 10))[4]
    np.testing.assert_array_equal(row, np.arange(50, 60))
    assert known() == before + 1
    del row
    assert known() == before
