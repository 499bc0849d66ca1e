"""The self-check takes what is faster and as exact, and says what it measured."""

import pytest
import torch

from etpo_paper.base import machine


@pytest.fixture(autouse=True)
def restored():
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    backend = torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.backends.mkldnn.matmul.fp32_precision = backend
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def rates(monkeypatch, table):
    monkeypatch.setattr(machine, "_rate", lambda dtype: table[dtype](torch.get_num_threads()))


def test_it_measures_every_candidate(monkeypatch):
    operands = machine._operands
    monkeypatch.setattr(machine, "_operands", lambda rows=64: operands(min(rows, 64)))  # takes seconds where emulated
    choice = machine.choose("bfloat16")
    assert choice.threads == torch.get_num_threads() and choice.precision in ("float32", "bfloat16")
    assert {key.partition(",")[0] for key in choice.gflops} == {"float32", "bfloat16"} == set(choice.errors)
    assert all(rate > 0 for rate in choice.gflops.values())
    assert choice.errors["float32"] < 1e-5 < choice.errors["bfloat16"] < 1e-2
    assert choice.plain()["precision"] == choice.precision


def test_float32_is_never_left_for_something_less_exact(monkeypatch):
    rates(monkeypatch, {torch.float32: lambda threads: 1.0, torch.bfloat16: lambda threads: 100.0})
    assert machine.choose("float32").precision == "float32"
    assert machine.choose("bfloat16").precision == "bfloat16"


def test_bfloat16_is_left_where_it_is_slow(monkeypatch):
    rates(monkeypatch, {torch.float32: lambda threads: 100.0, torch.bfloat16: lambda threads: 10.0})
    assert machine.choose("bfloat16").precision == "float32"


def test_threads_are_given_up_only_for_a_clear_gain(monkeypatch):
    torch.set_num_threads(2)
    rates(monkeypatch, {torch.float32: lambda threads: 100.0 / threads**3})
    assert machine.choose("float32").threads == 1 == torch.get_num_threads()
    torch.set_num_threads(2)
    rates(monkeypatch, {torch.float32: lambda threads: 100.0 if threads == 2 else 300.0})
    assert machine.choose("float32").threads == 2


def test_fast_matmul_is_exact_or_off():
    before = torch.get_float32_matmul_precision()
    switched = machine.use_fast_matmul()
    assert torch.get_float32_matmul_precision() == ("medium" if switched else before)
    a = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    error = ((a @ a.T).double() - a.double() @ a.double().T).abs().max()
    assert error < 1e-3


@pytest.mark.parametrize("exact", [True, False])
def test_a_precision_set_in_another_way_is_no_obstacle(monkeypatch, exact):
    torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        torch.get_float32_matmul_precision()
    monkeypatch.setattr(machine, "_error", lambda dtype: 1e-7 if exact else 3e-3)
    assert machine.use_fast_matmul() is exact
    assert torch.get_float32_matmul_precision() == ("medium" if exact else "highest")
