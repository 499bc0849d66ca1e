"""The curves of a run in progress: TensorBoard reads what was added, also after an interruption."""

import sys

import pytest

from etpo_core.errors import UserError
from etpo_paper.training import live
from etpo_paper.training.run import Run


@pytest.fixture
def run(tmp_path, at, monkeypatch):
    at(tmp_path)
    monkeypatch.setenv(live.SWITCH, "1")
    return Run("smoke", "etpo", "diabetes", 0)


def shown(root):
    """(step, value) of the mean reward, as TensorBoard has it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(root / "build/tensorboard/smoke/etpo/diabetes/seed0")).Reload()
    assert events.Tags()["scalars"] == ["mean_reward"]
    return [(event.step, event.value) for event in events.Scalars("mean_reward")]


def add(run, *points):
    with live.curves(run) as curves:
        for update, (steps, reward) in enumerate(points):
            curves({"update": update, "steps": steps, "mean_reward": reward, "note": "text"})


def test_a_run_that_goes_on_goes_on_with_its_curves_and_another_begins_new_ones(run, tmp_path):
    add(run, (16, 0.25), (32, 0.5))
    run.state.parent.mkdir(parents=True)
    run.state.write_text("")  # a run that was interrupted before the checkpoint of its last update
    add(run, (32, 0.75), (48, 1.0))
    assert shown(tmp_path) == [(16, 0.25), (32, 0.75), (48, 1.0)]
    run.state.unlink()
    add(run, (16, -1.0))
    assert shown(tmp_path) == [(16, -1.0)]


def test_nothing_is_written_without_the_switch(run, tmp_path, monkeypatch):
    monkeypatch.delenv(live.SWITCH)
    add(run, (16, 0.25))
    assert not (tmp_path / "build").exists()


def test_a_missing_tensorboard_is_told_before_anything_is_computed(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        UserError, match="the curves that were asked for need TensorBoard, which is not installed; run: pip install"
    ):
        add(run)
