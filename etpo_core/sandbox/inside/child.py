"""A child process: it runs one program on one split, answers, and ends.

The child reads the training half, runs the program's `build_model` and reports FITTED. Only then does it receive the
rows to predict, and it answers with a table of probabilities or with one error. It never holds a label of those rows,
so there is nothing worth finding in its memory. And since it answers with predictions, not with a score, a forged
answer is no better than the predictions that it consists of.
"""

import os
import random
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import wire
from preload import Gate

DATA_FD = 3
_FILE = "<snippet>"  # the file name of the program's code in tracebacks


class _BadOutput(Exception):
    """The model's answer is not a table of probabilities."""


def live(confine: Callable[[], None]) -> None:
    """Runs in the forked process, with the data channel on `DATA_FD`, from its first to its last line; never returns.

    Args:
        confine: puts the process behind the walls, or raises.
    """
    status = wire.EXIT_UNCONFINED
    try:
        confine()
        status = os.EX_SOFTWARE
        _serve()
        status = 0
    except MemoryError:
        status = wire.EXIT_NO_MEMORY
    except BaseException:  # the data channel is broken, so the error cannot be reported
        pass
    finally:
        os._exit(status)  # skips all exit hooks, finalizers and threads of the program


def _serve() -> None:
    _send(wire.CONFINED)
    seed, source_size, rows, features, test_rows, class_count = wire.JOB.unpack(_receive(wire.JOB.size))
    source = _receive(source_size).decode("utf-8", "surrogatepass")
    x = np.frombuffer(_receive(8 * rows * features), "<f8").reshape(rows, features)
    y = np.frombuffer(_receive(8 * rows), "<i8")
    classes = np.frombuffer(_receive(8 * class_count), "<i8").copy()
    train = x.copy(), y.copy()  # the program may change what it receives
    sys.path.clear()
    sys.argv[:] = sys.orig_argv[:] = ["snippet"]
    sys.meta_path.insert(0, Gate(None))
    for name in ("child", "wire", "confine", "preload", "landlock", "tries"):
        sys.modules.pop(name, None)  # a program imports libraries, and nothing of ours
    _seed(seed)
    try:
        model = _fit(source, x, y)
        _send(wire.FITTED)
        x_test = np.frombuffer(_receive(8 * test_rows * features), "<f8").reshape(test_rows, features)
        table = _probabilities(model, x_test, train, classes)
    except MemoryError:
        _send(wire.NO_MEMORY)
    except _BadOutput as error:
        _send(wire.BAD_OUTPUT, f"ValueError\0\0{error}".encode("utf-8", "replace")[: wire.MAX_ERROR_BYTES])
    except BaseException as error:  # the program may also raise SystemExit or KeyboardInterrupt
        _send(wire.ERROR, _describe(error))
    else:
        _send(wire.RESULT, table.tobytes())


def _seed(seed: int) -> None:
    """Seeds all sources of randomness (numpy's, Python's, the system's) that a program may leave unseeded."""
    source = random.Random(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    np.random.bit_generator.randbits = source.getrandbits  # default_rng(), RandomState(), SeedSequence()
    os.urandom = random._urandom = source.randbytes  # SystemRandom, secrets, uuid4
    os.getrandom = lambda size, flags=0: source.randbytes(size)
    seed_with = random.Random.seed

    def seed_always(self: random.Random, a: Any = None, version: int = 2) -> None:
        seed_with(self, source.getrandbits(64) if a is None else a, version)

    random.Random.seed = seed_always
    random.seed = random._inst.seed


def _fit(source: str, x: np.ndarray, y: np.ndarray) -> Any:
    module = types.ModuleType("snippet")
    sys.modules["snippet"] = sys.modules["__main__"] = module  # dataclasses and pickle look up a class's module
    exec(compile(source, _FILE, "exec", dont_inherit=True), module.__dict__)
    if "build_model" not in module.__dict__:
        raise NameError("the code defines no function build_model")
    model = module.__dict__["build_model"](x, y)
    if model is None:
        raise TypeError("build_model returned None instead of a fitted classifier")
    if isinstance(model, type):
        raise TypeError(f"build_model returned the class {model.__name__} instead of a fitted classifier")
    if not hasattr(model, "predict_proba"):
        only = " (decision_function alone does not count)" if hasattr(model, "decision_function") else ""
        raise AttributeError(f"{type(model).__name__} has no predict_proba, which the score needs{only}")
    return model


def _probabilities(model: Any, x: np.ndarray, train: tuple[np.ndarray, np.ndarray], classes: np.ndarray) -> np.ndarray:
    """The answer of predict_proba as float64 [rows of x, classes], one column for each class in ascending order.

    Classes that the model does not know get probability 0.

    Args:
        model: what `build_model` returned.
        x: float64 [rows, features] to predict.
        train: x and y of the training half.
        classes: int64, all labels of the task in ascending order.
    """
    answer, seen = _table(model, x), np.unique(train[1])
    labels = getattr(model, "classes_", None)
    labels = seen if labels is None else np.asarray(labels).ravel()
    expected = (len(x), len(labels))
    if answer.shape != expected:
        raise _BadOutput(f"predict_proba returned shape {answer.shape}, expected {expected} (rows, classes)")
    named = _named(labels, seen)
    if named is None:
        if len(labels) != len(seen):
            raise _BadOutput("classes_ of the model are not those of y_train")
        named = _renamed(model, labels, seen, train)
    table = np.zeros((len(x), len(classes)), "<f8")
    known = np.isin(named, classes)
    table[:, np.searchsorted(classes, named[known].astype("<i8"))] = answer[:, known]
    return table


def _table(model: Any, x: np.ndarray) -> np.ndarray:
    """The numbers that predict_proba answers with."""
    answer = np.asarray(model.predict_proba(x))
    if answer.dtype.kind == "O":
        with suppress(TypeError, ValueError):
            answer = answer.astype("<f8")
    if answer.dtype.kind not in "biuf":
        raise _BadOutput(f"predict_proba returned values of type {answer.dtype}, not numbers")
    return answer


def _named(labels: np.ndarray, seen: np.ndarray) -> np.ndarray | None:
    """The class that each of the model's labels names, or None if they name others than those of the training half.

    A label names a class if it is its number, be it written as text. A model may know fewer classes than the training
    half has, or more.
    """
    try:
        numbers = np.asarray([float(label) for label in labels])
    except (TypeError, ValueError):
        return None
    if len(np.unique(numbers)) != len(numbers) or not (np.isin(numbers, seen).all() or np.isin(seen, numbers).all()):
        return None
    return numbers


def _renamed(model: Any, labels: np.ndarray, seen: np.ndarray, train: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The class that each of the model's labels stands for, if the program has given the classes other names.

    The names 0, 1, 2 … are those of an encoder, which keeps the order. Others may come in another order: "alive" for 1
    stands before "dead" for 0. They are matched so that the model's mean probability of the right class is largest on
    the training half, and keep the order where no match is better.
    """
    names = labels.tolist()
    if names == list(range(len(seen))) or len(set(names)) != len(names):
        return seen
    x, y = train
    answer = _table(model, x)
    if answer.shape != (len(y), len(seen)) or not np.isfinite(answer).all():
        return seen
    from scipy.optimize import linear_sum_assignment

    mean = np.stack([answer[y == label].mean(axis=0) for label in seen])
    rows, columns = linear_sum_assignment(mean, maximize=True)
    if mean[rows, columns].sum() <= np.trace(mean) + 1e-9 * np.abs(mean).sum():
        return seen
    return seen[np.argsort(columns)]


def _describe(error: BaseException) -> bytes:
    """The error as `type \\0 line \\0 message`. To format it runs code of the program, which may fail in turn."""
    try:
        kind = type(error).__name__
        line = ""
        if isinstance(error, SyntaxError) and error.filename == _FILE:
            line, text = str(error.lineno or ""), str(error.msg)
        else:
            text = str(error)
            trace = error.__traceback__
            while trace is not None:
                if trace.tb_frame.f_code.co_filename == _FILE:
                    line = str(trace.tb_lineno)
                trace = trace.tb_next
        parts = [part.replace("\0", " ") for part in (kind[:80], line[:10], text[: wire.MAX_ERROR_BYTES])]
        # The cut at the byte limit may split a character; the host replaces what it cannot decode.
        return "\0".join(parts).encode("utf-8", "replace")[: wire.MAX_ERROR_BYTES]
    except BaseException:
        return b"Exception\0\0the error cannot be printed"


def _send(kind: int, payload: bytes = b"") -> None:
    data = memoryview(wire.FRAME.pack(wire.MAGIC, kind, len(payload)) + payload)
    while data:
        data = data[os.write(DATA_FD, data) :]


def _receive(size: int) -> bytearray:
    """Exactly `size` bytes, as a bytearray, so that arrays made of it are writable."""
    data = bytearray()
    while len(data) < size:
        piece = os.read(DATA_FD, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
