"""What the runs of a process use together: the executor, and one copy of the model's frozen weights."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from etpo_core.sandbox import SandboxPool
from etpo_paper.base.lockstep import Ask
from etpo_paper.base.machine import Choice, choose
from etpo_paper.base.settings import Sandbox, Settings
from etpo_paper.environment.executor import open_executor
from etpo_paper.model import llama
from etpo_paper.model.agent import Agent
from etpo_paper.model.loading import load_model, twin
from etpo_paper.model.trunk import Part, Passed, Trunk
from etpo_paper.training.run import Run

Asks = Ask[tuple[Trunk, Part], Passed]


class Common:
    """What the runs of a process use together: the executor, and the frozen weights of the model.

    Use it as a context manager.

    Args:
        steps: environment steps of all runs, for a progress bar that counts them together; None for a bar of each run.
        title: of that progress bar.
    """

    def __init__(self, steps: int | None = None, title: str = ""):
        self._stack = ExitStack()
        self._executors: dict[str, SandboxPool] = {}
        self._choices: dict[str, Choice] = {}
        self._models: dict[tuple[str, str], tuple[PreTrainedModel, Any, dict[str, Any], Trunk | None]] = {}
        self._bar = None if steps is None else self._stack.enter_context(tqdm(total=steps, unit="step", desc=title))

    def __enter__(self) -> "Common":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def executor(self, sandbox: Sandbox) -> SandboxPool:
        """The executor that a section `sandbox` asks for."""
        key = repr(sandbox)
        if key not in self._executors:
            self._executors[key] = self._stack.enter_context(open_executor(sandbox))
        return self._executors[key]

    def choice(self, precision: str) -> Choice:
        """How this machine computes on the CPU, which is measured once."""
        if precision not in self._choices:
            self._choices[precision] = choose(precision)
        return self._choices[precision]

    def agent(
        self, run: Run, settings: Settings, device: torch.device, trains: bool, precision: str, ask: Asks | None
    ) -> Agent:
        """An agent with adapters of its own on weights that it shares with the other agents, see `load_agent`."""
        key = settings.model, precision
        if key not in self._models:
            dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
            model, tokenizer, card = load_model(settings.model, dtype, device)
            trunk = Trunk(model, getattr(torch, precision)) if llama.fits(model) else None
            self._models[key] = model, tokenizer, card, trunk
        model, tokenizer, card, trunk = self._models[key]
        forward = None if ask is None else lambda trunk, part: ask((trunk, part))
        training = settings.training
        return Agent(
            twin(model),
            tokenizer,
            card,
            forward,
            rank=training.lora_rank if trains else None,
            alpha=training.lora_alpha,
            layers=training.lora_layers,
            seed=run.seed,
            precision=precision,
            momentum=training.momentum,
            grad_norm=training.grad_norm,
            micro_batch_tokens=training.micro_batch_tokens,
            trunk=trunk,
        )

    def shows(self, run: Run, row: Mapping[str, Any], new: int) -> None:
        """Moves the common bar on by some steps of a run, if there is one."""
        if self._bar is not None:
            self._bar.update(new)
            self._bar.set_postfix_str(f"{run.method} {run.task} {run.seed}: reward {row['mean_reward']:.3f}")

    @property
    def has_bar(self) -> bool:
        """Whether there is a bar for all runs."""
        return self._bar is not None


def load_agent(run: Run, settings: Settings, device: torch.device, trains: bool, precision: str = "") -> Agent:
    """The scale's language model with fresh adapters, or without any for a method that does not train.

    Its products are taken in `precision`, by default that of the settings.
    """
    return Common().agent(run, settings, device, trains, precision or settings.training.precision, None)
