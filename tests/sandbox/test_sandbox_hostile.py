"""Hostile code that needs more than one split or a table of its own; `corpus.py` has all that does not."""

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import body

from etpo_core.sandbox import Status
from etpo_core.sandbox.worker import _INSIDE

_LIMIT = Path("/proc/sys/user/max_user_namespaces")
NAMESPACES = _LIMIT.exists() and int(_LIMIT.read_text()) > 0

SCAN = """
import gc, sys
import numpy as np
n = {test_rows}
def look():
    found = [o for o in gc.get_objects() if isinstance(o, np.ndarray)]
    frame = sys._getframe()
    while frame is not None:
        found += [v for v in frame.f_locals.values() if isinstance(v, (np.ndarray, list, bytes, bytearray))]
        frame = frame.f_back
    for array in found:
        if isinstance(array, np.ndarray) and array.shape == (n,) and array.dtype.kind in 'iu' and array is not MINE:
            raise AssertionError('labels found')
class Model:
    classes_ = np.array([0, 1])
    def predict_proba(self, x):
        look()
        return np.tile([0.5, 0.5], (len(x), 1))
def build_model(x_train, y_train):
    global MINE
    MINE = y_train
    y_train = None
    look()
    return Model()
"""


def test_no_label_vector_anywhere_in_memory(pool, run):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(91, 3)), rng.integers(0, 2, 91)  # 45 rows to train on, 46 to predict
    source = SCAN.format(test_rows=46)
    assert pool.score(source, x, y, [0]).error_text == ""
    assert (
        "labels found"
        in pool.score(
            SCAN.format(test_rows=45)
            .replace("MINE = y_train", "MINE = None")
            .replace("y_train = None", "keep = y_train"),
            x,
            y,
            [0],
        ).error_text
    )


# The numbers of the process and of threads that it starts, which native code can read where the C library keeps them.
NUMBERS = """
import ctypes, threading
def build_model(x_train, y_train):
    numbers = []
    def look():
        numbers.append(ctypes.c_int.from_address(threading.get_ident() + 0x2d0).value)
    look()
    for _ in range({count}):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    raise ValueError(str(numbers))
"""


@pytest.mark.skipif(platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.skipif(not NAMESPACES, reason="the kernel lets nobody make user namespaces")
def test_numbers_of_processes_and_threads_begin_anew(tier_pool, table):
    pool = tier_pool("A")
    for count in (1, 5, 2):
        expected = f"ValueError: {list(range(1, count + 2))} (line 12)"
        assert pool.score(NUMBERS.format(count=count), *table, [0]).error_text == expected


def test_a_process_with_a_namespace_of_its_own_has_no_rights_in_it():
    if not NAMESPACES:
        pytest.skip("the kernel lets nobody make user namespaces")
    code = f"""if True:
        import os, sys
        sys.path.insert(0, {str(_INSIDE)!r})
        import confine
        if confine.fork_alone() == 0:
            fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
            rights = [int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")]
            try:
                os.setgroups([])
            except PermissionError:
                rights.append("refused")
            print(os.getpid(), os.getppid(), *rights, flush=True)
            os._exit(0)
        os.wait()
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.split() == ["1", "0", "0", "0", "0", "0", "refused"], ended.stderr


CONSTANT = """
import numpy as np
class Model:
    classes_ = np.array([0, 1])
    def predict_proba(self, x):
        return np.tile([0.5, 0.5], (len(x), 1))
"""


def test_predicting_the_row_number_is_worth_nothing(pool):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(600, 2)), np.repeat([0, 1], 300)  # sorted by label
    source = CONSTANT.replace("np.tile([0.5, 0.5], (len(x), 1))", "np.c_[-np.arange(len(x)), np.arange(len(x))]")
    source += "def build_model(x_train, y_train):\n    return Model()\n"
    assert abs(pool.score(source, x, y, range(5)).score - 0.5) < 0.06


def test_validation_rows_arrive_after_the_fit_and_shuffled(pool):
    # feature 0 is the row's number: the order in which predict_proba sees rows is not that of the split
    x = np.arange(80.0).reshape(40, 2)
    y = np.arange(40) % 2
    source = CONSTANT.replace(
        "return np.tile", "raise ValueError(x[:, 0].astype(int).tolist())\n        return np.tile"
    )
    source += "def build_model(x_train, y_train):\n    return Model()\n"
    message = pool.score(source, x, y, [0]).message
    from sklearn.model_selection import train_test_split

    test = train_test_split(np.arange(40), test_size=0.5, random_state=0, shuffle=True)[1]
    seen = [int(text) for text in message.strip("[]").split(",")]
    assert sorted(seen) == sorted(x[test, 0].astype(int)) and seen != x[test, 0].astype(int).tolist()


def test_nothing_is_carried_from_one_split_to_the_next(run):
    source = body("""
import sklearn
assert not hasattr(sklearn, 'mark'), 'seen before'
sklearn.mark = x_train""")
    assert run(source, range(5)).status is Status.OK
