"""Hostile code: each attack fails behind the wall, works without it, and leaves the workers as they were."""

import os
import socket
import textwrap

import numpy as np
import pytest
from programs import body, needs_wall

from etpo_core.sandbox import Status

REFUSED = {
    "read a system file": "open('/etc/passwd').read()",
    "read a file of the host": "open(r'{secret}').read()",
    "list the root": "import os; os.listdir('/')",
    "list /tmp": "import os; os.listdir('/tmp')",
    "create a file": "open(r'{folder}/made', 'w')",
    "create a file by creat(2)": "import ctypes; assert ctypes.CDLL(None).creat(rb'{folder}/made', 0o600) >= 0",
    "make a folder": "import os; os.mkdir(r'{folder}/made')",
    "remove a file": "import os; os.unlink(r'{spare}')",
    "rename a file": "import os; os.rename(r'{spare}', r'{folder}/made')",
    "link a file": "import os; os.symlink(r'{secret}', r'{folder}/made')",
    "change a mode": "import os; os.chmod(r'{secret}', 0o777)",
    "truncate a file": "import os; os.truncate(r'{secret}', 0)",
    "change folder": "import os; os.chdir('/tmp')",
    "own environment": "open('/proc/self/environ').read()",
    "memory of the zygote": "import os; open(f'/proc/{{os.getppid()}}/maps').read()",
    "labels shipped with sklearn": "from sklearn.datasets import load_iris; load_iris()",
    "memfd_create": "import os; os.memfd_create('x')",
    "shared memory": "from multiprocessing.shared_memory import SharedMemory as S\n"
    "import os; os.open('/dev/shm', os.O_RDONLY)",
    "TCP": "import socket; socket.create_connection(('127.0.0.1', {port}))",
    "any address family": """
import socket
for family in range(46):
    for kind in (1, 2, 3, 5):
        try:
            socket.socket(family, kind).close()
        except PermissionError:
            continue
        except OSError:
            continue
        break
    else:
        continue
    break
else:
    raise PermissionError('none')""",
    "socketpair": "import socket; socket.socketpair()",
    "fork": "import os\nif os.fork() == 0: os._exit(0)",
    "subprocess": "import subprocess; subprocess.run(['true'], check=True)",
    "os.system": "import os\nif os.system('true') != 0: raise PermissionError",
    "double fork": """
import os
if os.fork() == 0:
    os.setsid()
    os._exit(0)""",
    "signal the zygote": "import os; os.kill(os.getppid(), 0)",
    "raise a limit": "import resource as r; r.setrlimit(r.RLIMIT_CORE, (0, 0))",
    "ptrace": "import ctypes; assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
}


@pytest.fixture
def scene(tmp_path):
    """A secret, a file to spare, and a listening port; says afterwards what was touched."""
    secret, spare = tmp_path / "labels.csv", tmp_path / "spare"
    secret.write_text("secret labels")
    spare.write_text("")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        names = {"secret": secret, "spare": spare, "folder": tmp_path, "port": server.getsockname()[1]}

        def untouched():
            with pytest.raises(BlockingIOError):
                server.accept()
            assert sorted(os.listdir(tmp_path)) == ["labels.csv", "spare"]
            assert secret.read_text() == "secret labels" and secret.stat().st_mode & 0o777 != 0o777

        yield names, untouched


@needs_wall
@pytest.mark.parametrize("name", REFUSED)
def test_refused(run, scene, name):
    names, untouched = scene
    outcome = run(body(REFUSED[name].format(**names)))
    assert outcome.status is Status.SNIPPET_ERROR, outcome
    assert "secret labels" not in outcome.error_text
    untouched()


@pytest.mark.parametrize("name", REFUSED)
def test_positive_control(open_pool, table, scene, name):
    if name in ("own environment", "memory of the zygote") and os.getuid() != 0:
        pytest.skip("hidden from equal users by another layer too: the processes are not dumpable")
    outcome = open_pool.score(body(REFUSED[name].format(**scene[0])), *table, [0])
    assert outcome.status is Status.OK, outcome.error_text


@needs_wall  # and no control: without the wall it would end this test
def test_signalling_everybody_is_refused(run, pool):
    before = [worker.pid for worker in pool._workers]
    probe = """
import os
for pid in (os.getppid(), -1, 0, 1):
    try:
        os.kill(pid, 9)
    except PermissionError:
        continue
    raise AssertionError(pid)"""
    assert run(body(probe)).status is Status.OK
    assert [worker.pid for worker in pool._workers] == before


@needs_wall
def test_raw_system_calls_are_refused(run):
    numbers = {
        "ptrace": 101, "process_vm_readv": 310, "unshare": 272, "setns": 308, "mount": 165, "umount2": 166,
        "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "add_key": 248,
        "keyctl": 250, "kexec_load": 246, "init_module": 175, "pidfd_open": 434, "pidfd_getfd": 438,
        "pidfd_send_signal": 424, "seccomp": 317, "personality": 135, "reboot": 169, "shmget": 29,
        "mq_open": 240, "inotify_init": 253, "execveat": 322, "timer_create": 222, "setrlimit": 160,
        "pivot_root": 155, "chroot": 161, "fork": 57, "vfork": 58, "execve": 59, "clone3": 435, "kill": 62,
        "tkill": 200, "tgkill": 234, "socket": 41, "socketpair": 53, "memfd_create": 319, "openat2": 437,
        "memfd_secret": 447, "setuid": 105, "capset": 126, "name_to_handle_at": 303, "open_by_handle_at": 304,
        "sendfile": 40, "splice": 275, "pipe2": 293, "eventfd2": 290,
    }  # fmt: skip
    probe = f"""
import ctypes, platform
assert platform.machine() == 'x86_64', 'numbers are of x86-64'
libc = ctypes.CDLL(None, use_errno=True)
for number in {list(numbers.values())}:
    answer = libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0, 0)
    assert answer == -1 and ctypes.get_errno() in (1, 38), (number, answer, ctypes.get_errno())"""
    if os.uname().machine != "x86_64":
        pytest.skip("system-call numbers of x86-64")
    assert run(body(probe)).status is Status.OK


@needs_wall
def test_another_call_table_is_a_policy_violation(run):
    if os.uname().machine != "x86_64":
        pytest.skip("x32 calls exist on x86-64 only")
    outcome = run(body("import ctypes; ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 39))"))
    assert outcome.status is Status.POLICY_VIOLATION


def test_it_inherits_no_more_than_its_channel(run):
    probe = """
import os
held = []
for fd in range(64):
    try:
        os.fstat(fd); held.append(fd)
    except OSError:
        pass
assert held == [0, 1, 2, 3], held"""
    assert run(body(probe)).status is Status.OK


def test_it_sees_a_fixed_environment(run, monkeypatch):
    monkeypatch.setenv("ETPO_SECRET", "token")
    probe = """
import os, sys
extra = {name for name in os.environ if not name.endswith('_NUM_THREADS')} - {
    'PATH', 'HOME', 'LANG', 'TZ', 'PYTHONHASHSEED', 'PYTHONWARNINGS', 'JOBLIB_MULTIPROCESSING',
    'OPENBLAS_CORETYPE', 'LC_CTYPE', 'KMP_INIT_AT_FORK', 'KMP_DUPLICATE_LIB_OK'}
assert not extra, extra
assert sys.argv == ['snippet'] and os.getcwd() == '/' and not sys.path"""
    assert run(body(probe)).status is Status.OK


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


CONSTANT = """
import numpy as np
class Model:
    classes_ = np.array([0, 1])
    def predict_proba(self, x):
        return np.tile([0.5, 0.5], (len(x), 1))
"""


def test_patched_metrics_change_nothing(run):
    source = CONSTANT + textwrap.dedent("""
        def build_model(x_train, y_train):
            import sklearn.metrics, builtins
            sklearn.metrics.roc_auc_score = lambda *a, **k: 1.0
            np.isfinite = lambda *a: np.array([True])
            return Model()
    """)
    assert run(source).score == 0.5


def test_a_forged_result_is_only_a_prediction(run):
    frame = """
        def build_model(x_train, y_train):
            import os, struct
            n = 60
            os.write(3, struct.pack('<4sB3xI', b'ETS1', 2, 0))
            table = np.tile([0.5, 0.5], (n, 1)).astype('<f8')
            os.write(3, struct.pack('<4sB3xI', b'ETS1', 3, table.nbytes) + table.tobytes())
            while True: pass
    """
    outcome = run(CONSTANT + textwrap.dedent(frame))
    assert (outcome.status, outcome.score) == (Status.OK, 0.5)  # at once: the endless loop is not waited for
    assert outcome.cpu_s < 1


def test_predicting_the_row_number_is_worth_nothing(pool):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(600, 2)), np.repeat([0, 1], 300)  # sorted by label
    source = CONSTANT.replace(
        "np.tile([0.5, 0.5], (len(x), 1))", "np.c_[-np.arange(len(x)), np.arange(len(x))]"
    )
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


def test_models_are_never_unpickled(run, tmp_path):
    source = (
        CONSTANT
        + f"""
    def __reduce__(self):
        import os
        return os.mkdir, (r'{tmp_path}/made',)
def build_model(x_train, y_train):
    return Model()
"""
    )
    assert run(source).status is Status.OK
    assert not (tmp_path / "made").exists()


def test_nothing_is_carried_from_one_split_to_the_next(run):
    source = body("""
import sklearn
assert not hasattr(sklearn, 'mark'), 'seen before'
sklearn.mark = x_train""")
    assert run(source, range(5)).status is Status.OK


@pytest.mark.parametrize(
    "header",
    [b"A" * 4096, b"[" * 4096, b"ETS1" + b"\x03" + b"\0" * 3 + b"\xff" * 4, b"ETS1\x63\0\0\0\0\0\0\0"],
)
def test_garbage_on_the_channel(run, header):
    outcome = run(body(f"import os\nos.write(3, {header!r})\nwhile True: pass"))
    assert outcome.status is Status.BAD_OUTPUT
    assert outcome.cpu_s < 1  # killed at once


def test_endless_bytes_on_the_channel(run):
    assert run(body("import os\nwhile True: os.write(3, b'x' * 65536)")).status is Status.BAD_OUTPUT
