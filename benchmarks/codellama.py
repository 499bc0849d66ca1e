"""The time and memory of an update and a rollout of CodeLlama-7B on a GPU, beside what their matrix products need.

The model has CodeLlama-7B's shape and random weights in bfloat16, made on the device. Adapters and sampling are those
of the scale `paper` (all layers, rank 16), and the code is the package's own `Agent`, decoder and ETPO. Three parts are
measured in one process, one after another:

* "update": learning from 16 actions of 256 tokens after one prompt of 80, in micro-batches of eight actions. The goal
  is 3 s and 40 GB. The limit is the arithmetic of `benchmarks.update` with all layers adapted, at the rate of bfloat16
  products of these shapes, measured here.
* "rollout": 64 sequences of 256 tokens after one prompt. The goal is twice the limit. The limit of a step is the larger
  of bytes / bandwidth and operations / rate. The bytes are those of all weights but the embedding; "with cache" also
  counts the keys and values that a step reads. The bandwidth is that of a reduction over 2 GB.
* "head": `head.statistics`, and `head.dueling_terms` with its gradients, at 4096 positions, with the head in the dtype
  that the agent holds and in bfloat16. The limit is the time of their products with the head alone, with the same block
  sizes, all in that dtype.

"peak_gib" is the most memory that torch had allocated during a phase, weights included, and "held_gib" what was still
allocated when the phase ended. The phases of an update are parts of it. What does not fit in memory is reported as out
of memory, and the rest is still measured. Without a GPU the script says so and writes nothing. `--small` measures a
tiny shape on the CPU, where memory is resident memory.

    python -m benchmarks.codellama --csv benchmarks/tables/codellama.csv
"""

import argparse
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pipeline  # noqa: F401  sets how threads wait, which torch reads when it is loaded

# isort: split
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.executor import save, show
from benchmarks.head import resident_mib
from benchmarks.rollout import fastest
from benchmarks.update import HEAD_FUNCTIONS, OURS_ALL, Load, arithmetic, numbers, product_rate, rewards
from etpo_core.errors import one_line_errors
from etpo_core.interfaces import Alone, Transition
from etpo_paper.base.settings import load_settings
from etpo_paper.environment.prompts import Action, Prompt
from etpo_paper.methods import build_method
from etpo_paper.model import head, networks
from etpo_paper.model.agent import Agent
from etpo_paper.model.loading import CONTINUATION

CODELLAMA = dict(
    vocab_size=32016, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=32, max_position_embeddings=16384, rope_theta=1e6,
)  # fmt: skip
SMALL = dict(
    vocab_size=512, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=6, max_position_embeddings=512,
)  # fmt: skip
PROMPT = 80
BETA = 0.1
NO_GPU = "no GPU here: nothing measured (--small runs a tiny shape on the CPU)"


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        actions: how many an update learns from.
        together: actions of a micro-batch.
        length: tokens of an action.
        sequences: how many a rollout writes.
        positions: at how many the head is computed.
        megabytes: how much is read to measure the bandwidth.
    """

    actions: int = 16
    together: int = 8
    length: int = 256
    sequences: int = 64
    positions: int = 4096
    megabytes: int = 2000


FEW = Sizes(actions=4, together=2, length=6, sequences=4, positions=8, megabytes=10)


@dataclass
class Spent:
    """What a phase took: seconds, the peak of memory during it, and the memory held when it ended, both in GiB."""

    seconds: float = 0.0
    peak: float = 0.0
    held: float = 0.0


@dataclass
class PhaseMeter:
    """Seconds and memory by phase. Phases may be nested; a peak counts for all phases that are open."""

    device: str
    spent: dict[str, Spent] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    def _settle(self) -> float:
        """Waits for the device, adds the peak since the last call to all open phases; returns what is held now."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            peak, held = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        else:
            peak, held = resident_mib("VmHWM") / 1024, resident_mib("VmRSS") / 1024
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        for name in self._open:
            self.spent[name].peak = max(self.spent[name].peak, peak)
        return held

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds time and memory of the `with` block to a phase."""
        self._settle()
        self._open.append(name)
        spent, started = self.spent.setdefault(name, Spent()), time.perf_counter()
        try:
            yield
            spent.held = self._settle()
            spent.seconds += time.perf_counter() - started
        finally:
            self._open.remove(name)

    @contextmanager
    def watch(self, owner: object, name: str, phase: str | Callable[..., str]) -> Iterator[None]:
        """In the `with` block, each call of `owner.name` is a phase, which may depend on the arguments."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase if isinstance(phase, str) else phase(*args, **kwargs)):
                return function(*args, **kwargs)

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, function)


class Bench:
    """A model with its agent and its method, and the rows of what was measured on them.

    Args:
        shape: arguments of `LlamaConfig`.
        sizes: how much is measured.
        device: cuda or cpu.
    """

    def __init__(self, shape: dict[str, Any], sizes: Sizes, device: str):
        self.sizes, self.device, self.meter = sizes, device, PhaseMeter(device)
        self.rows: list[dict[str, Any]] = []
        settings = load_settings("paper")
        training = settings.training
        self.rank = training.lora_rank
        with self.meter.phase("weights"):
            self.model = build(shape, device)
        with self.meter.phase("agent"):
            self.agent = Agent(
                self.model,
                numbers(shape["vocab_size"]),
                {"format": CONTINUATION, "eos_token_id": -1},  # no token has this id: every action has the full length
                rank=self.rank,
                alpha=training.lora_alpha,
                layers=training.lora_layers,
                seed=0,
                precision=training.precision,
                momentum=training.momentum,
                grad_norm=training.grad_norm,
                micro_batch_tokens=PROMPT + sizes.together * (sizes.length + 1),
            )
        with self.meter.phase("decoder"):
            self.agent.refresh()
        for name in ("weights", "agent", "decoder"):
            self.row("model", name)
        # The policy descends its loss as in the paper, because `arithmetic` counts reference, critic and policy.
        self.method = build_method("etpo", settings.methods["etpo"].plain() | {"policy_lr": 1e-3})
        self.method.start(self.agent.networks, Alone())
        self.prompt = Prompt(" ".join(str(3 + i) for i in range(PROMPT)), "")
        self.rates = functools.cache(lambda out, into: product_rate(out, into, device))

    def row(self, part: str, phase: str, seconds: float | str = "", limit: float | None = None) -> None:
        """Adds a row of the table."""
        spent = self.meter.spent.get(phase)
        seconds = spent.seconds if spent and seconds == "" else seconds
        self.rows.append(
            {
                "part": part,
                "phase": phase,
                "seconds": seconds if isinstance(seconds, str) else f"{seconds:.4g}",
                "limit_s": f"{limit:.4g}" if limit else "",
                "times_limit": f"{seconds / limit:.2f}" if limit and not isinstance(seconds, str) else "",
                "peak_gib": f"{spent.peak:.2f}" if spent else "",
                "held_gib": f"{spent.held:.2f}" if spent else "",
            }
        )

    def act(self, count: int, length: int) -> list[Action]:
        """A rollout with one token a pass; the generator starts alike each time, so all tokens could be guessed."""
        self.agent.drafts.set_state(())
        generator = torch.Generator().manual_seed(0)
        return self.agent.act([self.prompt] * count, max_new_tokens=length, generator=generator)

    def learn(self, actions: list[Action]) -> None:
        """Learns from actions and hands the new weights to the decoder."""
        ids = self.agent.encode(self.prompt)
        pairs = zip(actions, rewards(len(actions)), strict=True)
        self.method.update([Transition(ids, a.tokens, a.log_probs, r, True, None) for a, r in pairs])
        with self.meter.phase("refresh"):
            self.agent.refresh()

    def update(self) -> None:
        """Measures an update, by phase."""
        sizes, meter, name = self.sizes, self.meter, "update"
        self.learn(self.act(2, min(8, sizes.length)))
        meter.spent.pop("refresh")
        actions = self.act(sizes.actions, sizes.length)
        inner = ["reference", "critic", "policy"]
        with (
            ExitStack() as watched,
            meter.watch(self.agent.networks, "hidden", lambda role, *_, **__: role.replace("_", " ")),
            meter.watch(torch.Tensor, "backward", "backward"),
            meter.watch(self.agent.networks, "step", "optimisers"),
            meter.phase(name),
        ):
            for function in HEAD_FUNCTIONS:
                watched.enter_context(meter.watch(networks, function, "head"))
            self.learn(actions)
        load = Load(OURS_ALL, sizes.actions, sizes.length, PROMPT, 0, False)
        config = self.model.config
        self.row(name, name, limit=arithmetic(load, config, self.rank, config.num_hidden_layers, self.rates))
        for phase in (*inner, "head", "backward", "optimisers", "refresh"):
            self.row(name, phase)

    def rollout(self) -> None:
        """Measures a rollout beside its limit."""
        sizes = self.sizes
        self.act(sizes.sequences, min(8, sizes.length))
        with self.meter.phase("rollout"):
            self.act(sizes.sequences, sizes.length)
        seconds = self.meter.spent["rollout"].seconds
        self.row("rollout", "rollout", limit=self.rollout_limit(cache=False))
        self.row("rollout", "rollout, with cache", seconds, self.rollout_limit(cache=True))

    def rollout_limit(self, cache: bool) -> float:
        """The least time of a rollout in seconds; with `cache`, the keys and values that a step reads count as well."""
        config, weight = self.model.config, self.model.lm_head.weight
        read = (
            self.model.num_parameters() - weight.numel()
        ) * weight.element_size()  # few rows of the embedding are read
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * weight.element_size()
        bandwidth, sequences = self.bandwidth(), self.sizes.sequences
        operations = 2 * sequences * read / weight.element_size()
        rate = self.rates(config.intermediate_size, config.hidden_size)
        total = 2 * PROMPT * read / weight.element_size() / rate
        for written in range(1, self.sizes.length):  # the first token comes from the pass over the prompt
            seen = (
                per_token * (PROMPT + sequences * written) if cache else 0
            )  # the prompt's are read once for all sequences
            total += max((read + seen) / bandwidth, operations / rate)
        return total

    @functools.cache  # noqa: B019  there is one bench in a process
    def bandwidth(self) -> float:
        """Bytes a second that a reduction reads from memory."""
        zeros = torch.zeros(self.sizes.megabytes * 250_000, device=self.device)
        return 4 * zeros.numel() / fastest(zeros.amax, 9)

    def head(self) -> None:
        """Measures two functions of the head beside their products alone."""
        held = self.agent.networks.head_weight
        for weight in (held, held.bfloat16()) if held.dtype != torch.bfloat16 else (held,):
            torch.manual_seed(0)
            policy, reference, critic = torch.randn(3, self.sizes.positions, held.shape[1], device=self.device)
            tokens = torch.randint(len(weight), (self.sizes.positions,), device=self.device)
            calls: dict[str, tuple[Callable[[], object], int, int]] = {  # with their products, forward and back
                "statistics": (
                    functools.partial(head.statistics, policy, weight, reference=reference, tokens=tokens), 2, 0,
                ),
                "dueling": (functools.partial(dueling, policy, reference, critic, weight, tokens), 3, 3),
            }  # fmt: skip
            for name, (call, forward, back) in calls.items():
                phase = f"{name}, {str(weight.dtype).removeprefix('torch.')}"
                with self.meter.phase(phase):
                    call()
                alone = fastest(lambda f=forward, b=back, w=weight: products(f, b, w, self.sizes.positions), 5)
                self.row("head", phase, fastest(call, 5), alone)

    def run(self) -> list[dict[str, Any]]:
        """Measures all that fits in memory; returns the rows of the table."""
        for part in (self.update, self.rollout, self.head):
            try:
                part()
            except torch.OutOfMemoryError:
                self.row(part.__name__, part.__name__, "out of memory")
        return self.rows


def build(shape: dict[str, Any], device: str) -> LlamaForCausalLM:
    """A frozen model of a shape with random weights in bfloat16, made on the device."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    attention = "eager" if device == "cpu" else "sdpa"  # as `load_model` has it
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    return model.requires_grad_(False).eval()


def dueling(policy: Tensor, reference: Tensor, critic: Tensor, weight: Tensor, tokens: Tensor) -> None:
    """ETPO's terms with their gradients into the hidden states of policy and critic."""
    leaves = policy.detach().requires_grad_(), critic.detach().requires_grad_()
    terms = head.dueling_terms(leaves[0], reference, leaves[1], weight, tokens, BETA)
    torch.stack([term.sum() for term in terms if term.requires_grad]).sum().backward()


@torch.no_grad()
def products(forward: int, back: int, weight: Tensor, positions: int) -> None:
    """Products with the head alone, in blocks of the size that `head` takes, into memory that is used again.

    Args:
        forward: how many networks' logits are computed.
        back: how many matrices of weights are multiplied back to hidden states.
        weight: the head [V, H].
        positions: how many hidden states each network has.
    """
    blocks = head.CPU_BLOCKS if weight.device.type == "cpu" else head.GPU_BLOCKS
    rows, part = min(blocks.positions, positions), weight[: blocks.vocabulary]
    hidden = weight.new_ones(forward * rows, weight.shape[1])
    logits, pulled = weight.new_empty(forward * rows, len(part)), weight.new_empty(back * rows, weight.shape[1])
    for _ in range(math.ceil(positions / rows)):
        for part in weight.split(blocks.vocabulary):
            tile = logits.flatten()[: len(logits) * len(part)].view(len(logits), -1)
            torch.mm(hidden, part.T, out=tile)
            torch.mm(tile[: back * rows], part, out=pulled)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints the table and saves it; returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny shape on the CPU, to see that everything runs")
    parser.add_argument("--csv", type=Path, help="file to save the table to")
    chosen = parser.parse_args(arguments)
    if not chosen.small and not torch.cuda.is_available():
        print(NO_GPU)
        return []
    device = "cpu" if chosen.small else "cuda"
    bench = Bench(SMALL if chosen.small else CODELLAMA, FEW if chosen.small else Sizes(), device)
    rows = bench.run()
    name = "CPU, tiny shape" if chosen.small else torch.cuda.get_device_name()
    rows = [{"device": name} | row for row in rows]
    print(f"{name}; torch {torch.__version__}; {bench.bandwidth() / 1e9:.0f} GB/s\n")
    show(rows)
    if chosen.csv:
        save(rows, chosen.csv)
    return rows


if __name__ == "__main__":
    with one_line_errors():
        main()
