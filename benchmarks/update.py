"""The cost of one ETPO update: this package beside other implementations, and beside the limit of the machine.

The update learns from 16 actions of 96 tokens, all of them written after the same prompt of 67 tokens. The rewards are
arbitrary, and each action ends its episode. The model is SmolLM2-135M or, where `models/smollm2` is missing, its shape
with random weights. An "iteration" is the rollout that writes the actions and the update that learns from them. Each of
the following runs in a process of its own, and they take turns:

* "ours": this package with the settings of the scale laptop, except that the policy descends its loss as in the paper.
  Reference, policy, critic and target critic are adapters of one base, on its last layers. The body's products are
  taken in bfloat16. "ours, all layers" has adapters on all layers, so that only the prompt is computed once for several
  networks. "ours, exact policy" has the scale's own settings, with which the policy takes the critic's weights.
* "whole logits": a direct implementation, which stands in for the paper's released code. It holds four full copies of
  the model in float32 and the logits of three of them over the whole vocabulary for every token. Targets come from a
  Python loop, Lion trains all weights of policy and critic, and transformers' generate samples. "whole logits, fast
  products" is the same with the faster library for float32 products, which "ours" may choose as well.
* "TRL GRPO": a step of TRL's GRPOTrainer in bfloat16, with one trained adapter and a reference, but without a critic
  and a target. It needs the optional extra `bench`.
* "limit": the time of the arithmetic that the update needs, at the rate at which this machine multiplies bfloat16
  matrices of these shapes with 1024 rows. The arithmetic is one pass over the distinct tokens through the layers
  without adapters, three passes through those with adapters, of which two have gradients, and six products with the
  head. (No pass is needed for the target critic, because V is fitted by least squares.) "limit, all layers" is three
  passes through all layers. `benchmarks.rollout` says what the limit of the rollout is.

"peak_gib" is the peak of resident memory during the iteration minus what the process held before the model was made, so
weights, copies, optimisers and buffers all count. "beyond_gib" is the same peak minus what was resident right before
the iteration. On a GPU both are the memory that torch has allocated. "cpu_s" is the CPU time of the process, the figure
that other load on the machine disturbs least. Times are medians; ratios are medians of the ratios within a turn.

There are three tables: the comparison, the phases of our update, and its growth with the number of rollouts and with
the length of the actions, for a micro-batch of eight actions. `--csv FILE` saves them, the last two as FILE_phases and
FILE_growth.

    python -m benchmarks.update --csv update.csv
"""

import argparse
import copy
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pipeline  # noqa: F401  sets how threads wait, which torch reads when it is loaded

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.executor import save, show
from benchmarks.head import exponent, resident_mib
from benchmarks.rollout import SMALL, SMOLLM2, Limits, build, fastest
from etpo_core.bellman import expected_q, kl_divergence
from etpo_core.errors import one_line_errors
from etpo_core.interfaces import Alone, Transition
from etpo_core.losses import critic_loss, policy_loss
from etpo_paper.base.machine import choose, use_fast_matmul
from etpo_paper.base.paths import MODELS
from etpo_paper.base.settings import load_settings
from etpo_paper.environment.prompts import Prompt
from etpo_paper.methods import build_method
from etpo_paper.methods.released import Lion
from etpo_paper.model import networks
from etpo_paper.model.agent import Agent
from etpo_paper.model.loading import CONTINUATION, load_model
from etpo_paper.model.trunk import packed

OURS, WHOLE, WHOLE_FAST, TRL, LIMIT = "ours", "whole logits", "whole logits, fast products", "TRL GRPO", "limit"
OURS_ALL, LIMIT_ALL = f"{OURS}, all layers", f"{LIMIT}, all layers"
OURS_EXACT = f"{OURS}, exact policy"
BETA, GAMMA, TAU = 0.3, 0.99, 0.995
HEAD_FUNCTIONS = ("dueling_terms", "own_dueling_terms", "statistics")  # what `LanguageModelNetworks` calls of `head`
NO_TRL = "not measured: pip install --editable '.[bench]'"


@dataclass(frozen=True)
class Load:
    """What a process is to measure.

    Attributes:
        run: one of the names in `RUNS`.
        rollouts: number of actions in a batch.
        length: tokens of each action.
        prompt: tokens of the prompt that all actions share.
        micro_batch: tokens of a micro-batch of our update; 0 for the number of the scale laptop.
        small: whether the model is a tiny one.
    """

    run: str
    rollouts: int
    length: int
    prompt: int
    micro_batch: int
    small: bool


class Meter:
    """Wall and CPU seconds by phase, and the peaks of memory of one iteration.

    Args:
        device: cuda or cpu.
    """

    def __init__(self, device: str):
        self.device = device
        self.seconds: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.entry = self._now()

    def _now(self) -> float:
        return torch.cuda.memory_allocated() / 2**20 if self.device == "cuda" else resident_mib("VmRSS")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the `with` block to a phase."""
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._wait()
        self.seconds[name][0] += time.perf_counter() - wall
        self.seconds[name][1] += time.process_time() - cpu

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def watch(self, owner: object, name: str, phase: str | Callable[..., str]) -> None:
        """From now on, adds the time of each call of `owner.name` to a phase; the phase may depend on the arguments."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase if isinstance(phase, str) else phase(*args, **kwargs)):
                return function(*args, **kwargs)

        setattr(owner, name, timed)

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Forgets what was measured before, and measures the peak of memory in the `with` block."""
        self.seconds.clear()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        before = self._now()
        yield
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else resident_mib("VmHWM")
        self.memory = {"peak_gib": (peak - self.entry) / 1024, "beyond_gib": (peak - before) / 1024}

    def found(self) -> dict[str, Any]:
        """All that was measured."""
        return {"seconds": self.seconds, **self.memory}


# ----------------------------------------------------------------------------------------------- what all runs load


def language_model(small: bool, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """The frozen model in evaluation mode."""
    if not small and (MODELS / "smollm2" / "model.safetensors").exists():
        return load_model("smollm2", dtype, device)[0]
    return build(SMALL if small else SMOLLM2, device).to(dtype).requires_grad_(False)


def numbers(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer for texts that are token ids, so that a prompt of any number of tokens can be written."""
    tokenizer = Tokenizer(WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="0", pad_token="2", eos_token="2")


def prompt_ids(load: Load) -> list[int]:
    """Token ids of the prompt that all actions share."""
    return list(range(3, 3 + load.prompt))


def rewards(count: int) -> list[float]:
    """Arbitrary rewards; the cost of an update does not depend on them."""
    return [-1.0 if i % 3 else 0.8 for i in range(count)]


# --------------------------------------------------------------------------------------------------------- ours


def ours(load: Load, device: str) -> dict[str, Any]:
    """This package: `Agent.act`, `ETPO.update` and `Agent.refresh`."""
    meter = Meter(device)
    settings = load_settings("laptop")
    training = settings.training
    precision = choose(training.precision).precision if device == "cpu" else training.precision
    model = language_model(load.small, device, torch.float32 if device == "cpu" else torch.bfloat16)
    card = {"format": CONTINUATION, "eos_token_id": -1}  # no token has this id, so every action has the full length
    agent = Agent(
        model,
        numbers(model.config.vocab_size),
        card,
        rank=training.lora_rank,
        alpha=training.lora_alpha,
        layers=0 if load.run == OURS_ALL else training.lora_layers,
        seed=0,
        precision=precision,
        momentum=training.momentum,
        grad_norm=training.grad_norm,
        micro_batch_tokens=load.micro_batch or training.micro_batch_tokens,
    )
    section = settings.methods["etpo"].plain() | ({} if load.run == OURS_EXACT else {"policy_lr": 1e-3})
    method = build_method("etpo", section)
    method.start(agent.networks, Alone())
    prompt = Prompt(" ".join(map(str, prompt_ids(load))), "")
    generator = torch.Generator().manual_seed(0)

    def iteration(count: int, length: int) -> None:
        with meter.phase("rollout"):
            actions = agent.act([prompt] * count, max_new_tokens=length, generator=generator)
        batch = [
            Transition(agent.encode(prompt), a.tokens, a.log_probs, r, True, None)
            for a, r in zip(actions, rewards(count), strict=True)
        ]
        with meter.phase("update"):
            method.update(batch)
        with meter.phase("refresh"):
            agent.refresh()

    iteration(2, 8)
    meter.watch(agent.networks, "hidden", lambda role, *_, **__: f"{role.replace('_', ' ')}: forward")
    for name in HEAD_FUNCTIONS:
        meter.watch(networks, name, "head")
    meter.watch(torch.Tensor, "backward", "policy and critic: backward")
    meter.watch(agent.networks, "step", "optimisers")
    with meter.iteration():
        iteration(load.rollouts, load.length)
    return meter.found()


# ------------------------------------------------------------------------------------- whole logits


class WholeLogits:
    """Four full models, and the logits of three of them over the whole vocabulary for every token.

    Args:
        model: a float32 model, of which each network gets a copy.
        prompt: token ids of the prompt.
    """

    def __init__(self, model: LlamaForCausalLM, prompt: list[int]):
        self.reference, self.policy, self.critic, self.target = (copy.deepcopy(model) for _ in range(4))
        self.prompt = torch.tensor(prompt, device=model.device)
        self.optimisers = [Lion(net.requires_grad_(True).parameters(), 1e-6) for net in (self.policy, self.critic)]

    @torch.inference_mode()
    def act(self, count: int, length: int) -> torch.Tensor:
        """Samples actions; returns token ids of prompts and actions [count, prompt + length]."""
        ids = self.prompt.expand(count, -1)
        options: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 2}
        return self.policy.generate(ids, min_new_tokens=length, max_new_tokens=length, **options)

    def logits(self, model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
        """Logits [count, length, V] that the tokens of the actions are drawn from."""
        length = ids.shape[1] - len(self.prompt)
        return model(input_ids=ids, use_cache=False, logits_to_keep=length + 1).logits[:, :-1]

    @torch.no_grad()
    def collect(self, ids: torch.Tensor) -> dict[str, np.ndarray]:
        """What is kept of a rollout: the logits of three networks, each [count, length, V]."""
        models = {"policy": self.policy, "reference": self.reference, "target": self.target}
        return {name: self.logits(model, ids).float().cpu().numpy() for name, model in models.items()}

    @torch.no_grad()
    def targets(self, buffer: dict[str, np.ndarray], reward: Sequence[float]) -> torch.Tensor:
        """One-step soft Bellman targets [count, length]."""
        policy, reference, target = (
            torch.from_numpy(buffer[name]).to(self.prompt.device) for name in ("policy", "reference", "target")
        )
        value, kl = expected_q(policy, target), kl_divergence(policy, reference)
        count, length = value.shape
        targets = torch.zeros_like(value)
        for i in range(count):
            for j in range(length):
                last = j == length - 1
                targets[i, j] = reward[i] if last else value[i, j + 1] - BETA * kl[i, j + 1]
        return targets

    def learn(self, ids: torch.Tensor, buffer: dict[str, np.ndarray], targets: torch.Tensor) -> None:
        """One step of policy and critic, and Polyak averaging of the target critic."""
        actions = ids[:, len(self.prompt) :]
        q = self.logits(self.critic, ids)
        critic_loss(q.gather(-1, actions[..., None]).squeeze(-1), targets).mean().backward()
        reference = torch.from_numpy(buffer["reference"]).to(ids.device)
        policy_loss(self.logits(self.policy, ids), reference, q.detach(), BETA).mean().backward()
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            for new, old in zip(self.critic.parameters(), self.target.parameters(), strict=True):
                old.lerp_(new, 1 - TAU)


def whole_logits(load: Load, device: str) -> dict[str, Any]:
    """The direct implementation, `WholeLogits`."""
    meter = Meter(device)
    if load.run == WHOLE_FAST:
        use_fast_matmul()
    flow = WholeLogits(language_model(load.small, device, torch.float32), prompt_ids(load))

    def iteration(count: int, length: int) -> None:
        with meter.phase("rollout"):
            ids = flow.act(count, length)
        with meter.phase("update"):
            buffer = flow.collect(ids.clone())
            flow.learn(ids.clone(), buffer, flow.targets(buffer, rewards(count)))

    iteration(2, 8)
    with meter.iteration():
        iteration(load.rollouts, load.length)
    return meter.found()


# ---------------------------------------------------------------------------------------------------------- TRL


def trl_grpo(load: Load, device: str) -> dict[str, Any]:
    """The second step of TRL's trainer, in which it samples and updates."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    meter = Meter(device)
    use_fast_matmul()
    model = language_model(load.small, device, torch.bfloat16)

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.open = [meter.iteration(), meter.phase("iteration")]
            for context in self.open:
                context.__enter__()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            for context in reversed(self.open):
                context.__exit__(None, None, None)

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=device == "cpu",
            bf16=True,
            per_device_train_batch_size=load.rollouts,
            num_generations=load.rollouts,
            max_completion_length=load.length,
            generation_kwargs={"min_new_tokens": load.length},
            temperature=1.0,
            top_k=0,
            beta=0.04,
            gradient_checkpointing=False,
            max_steps=2,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        text = " ".join(map(str, prompt_ids(load)))
        trainer = GRPOTrainer(
            model=model,
            args=config,
            processing_class=numbers(model.config.vocab_size),
            train_dataset=Dataset.from_dict({"prompt": [text] * 2 * load.rollouts}),
            reward_funcs=lambda completions, **_: rewards(len(completions)),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Watch()],
        )
        meter.watch(trainer.model, "generate", "rollout")
        trainer.train()
    whole, rollout = meter.seconds.pop("iteration"), meter.seconds["rollout"]
    meter.seconds["update"] = [a - b for a, b in zip(whole, rollout, strict=True)]
    return meter.found()


# -------------------------------------------------------------------------------------------------------- the limit


def limit(load: Load, device: str) -> dict[str, Any]:
    """The least time of the arithmetic, at the rate of bfloat16 products of these shapes with 1024 rows."""
    model = build(SMALL if load.small else SMOLLM2, device)
    training, config = load_settings("laptop").training, model.config
    adapted = 0 if load.run == LIMIT_ALL else training.lora_layers
    adapted = min(adapted or config.num_hidden_layers, config.num_hidden_layers)
    rates = functools.cache(lambda out, into: product_rate(out, into, device))
    seconds = {"update": arithmetic(load, config, training.lora_rank, adapted, rates)}
    rollout = Limits(model, 3, 10 if load.small else 500)
    seconds["rollout"] = rollout.seconds([prompt_ids(load)] * load.rollouts, [load.length] * load.rollouts)
    threads = torch.get_num_threads() if device == "cpu" else 1
    return {"seconds": {name: [s, s * threads] for name, s in seconds.items()}, "peak_gib": 0.0, "beyond_gib": 0.0}


def arithmetic(load: Load, config: LlamaConfig, rank: int, adapted: int, rate: Callable[[int, int], float]) -> float:
    """The time of the products of an update.

    Args:
        load: the size of the batch.
        config: the shape of the model.
        rank: of the adapters.
        adapted: how many layers have adapters.
        rate: operations a second of products with a matrix [out, in], as a function of (out, in).

    Returns:
        Seconds.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    # The hidden state behind the last token of an action is not needed.
    tokens = load.prompt + load.rollouts * (load.length - 1)
    seen = load.prompt * (load.prompt + 1) / 2 + load.rollouts * sum(load.prompt + j for j in range(1, load.length))
    forward = update = 0.0  # seconds of one pass through one layer: products of the frozen weights, and of the adapters
    for outs, into in (([hidden, keys, keys], hidden), ([hidden], hidden), ([inner] * 2, hidden), ([hidden], inner)):
        per_parameter = 2 * tokens / rate(sum(outs), into)
        forward += per_parameter * sum(outs) * into
        update += per_parameter * sum(rank * (out + into) for out in outs)
    forward += 4 * seen * hidden / rate(hidden, hidden)  # attention
    # One pass below the adapters serves all roles. Above, there are passes of reference, policy and critic, the latter
    # two with adapters, whose backward passes reach their input and the weights of the adapters.
    body = (config.num_hidden_layers - adapted) * forward
    body += adapted * (3 * forward + 2 * update + 2 * (forward + 2 * update))
    head = 6 * 2 * load.rollouts * load.length * config.vocab_size * hidden / rate(config.vocab_size, hidden)
    return body + head


def product_rate(out: int, into: int, device: str) -> float:
    """Operations a second of a bfloat16 product with 1024 rows, in the faster of two layouts of the weight."""
    x, weight = (torch.randn(n, into, device=device).bfloat16() for n in (1024, out))
    product = packed(weight)
    with torch.inference_mode():
        seconds = min(fastest(lambda: F.linear(x, weight), 10), fastest(lambda: product(x), 10))
    return 2 * 1024 * out * into / seconds


# --------------------------------------------------------------------------------------------------- the tables

RUNS = {
    OURS: ours,
    OURS_ALL: ours,
    OURS_EXACT: ours,
    WHOLE: whole_logits,
    WHOLE_FAST: whole_logits,
    TRL: trl_grpo,
    LIMIT: limit,
    LIMIT_ALL: limit,
}


def measure(load: Load) -> dict[str, Any]:
    """Measures a load in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.update", "--worker", json.dumps(asdict(load))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=os.getcwd())
    if done.returncode != 0:
        raise RuntimeError(f"{load.run}: {done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    parts = found["seconds"]
    parts["update"] = [sum(s) for s in zip(parts["update"], parts.pop("refresh", [0.0, 0.0]), strict=True)]
    parts["iteration"] = [sum(s) for s in zip(parts["rollout"], parts["update"], strict=True)]
    return found


def comparison(runs: Sequence[str], rounds: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The first table, from what was measured in each round, by the name of the run."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        if run not in rounds[0]:
            rows.append(dict.fromkeys(rows[0], "") | {"run": run, "part": NO_TRL})
            continue
        for part in ("rollout", "update", "iteration"):

            def ratio(other: str, which: int, run: str = run, part: str = part) -> float:
                pairs = ((r[run]["seconds"][part][which], r[other]["seconds"][part][which]) for r in rounds)
                return round(statistics.median(a / b for a, b in pairs), 2)

            def median(key: str, run: str = run) -> float:
                return round(statistics.median(r[run][key] for r in rounds), 2)

            wall, cpu = (statistics.median(r[run]["seconds"][part][i] for r in rounds) for i in (0, 1))
            rows.append(
                {
                    "run": run,
                    "part": part,
                    "wall_s": f"{wall:.3g}",
                    "cpu_s": f"{cpu:.3g}",
                    "wall_of_ours": ratio(OURS, 0),
                    "cpu_of_ours": ratio(OURS, 1),
                    "wall_of_limit": ratio(LIMIT, 0),
                    "peak_gib": median("peak_gib") if part == "iteration" and run not in (LIMIT, LIMIT_ALL) else "",
                    "beyond_gib": median("beyond_gib") if part == "iteration" and run not in (LIMIT, LIMIT_ALL) else "",
                }
            )
    return rows


def phases(rounds: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The second table: the time of each phase of our update."""
    seconds = [r[OURS]["seconds"] for r in rounds]
    names = [name for name in seconds[0] if name not in ("rollout", "update", "iteration")]
    for s in seconds:
        s["the rest"] = [s["update"][i] - sum(s[name][i] for name in names) for i in (0, 1)]
    rows = []
    for name in (*names, "the rest", "update"):
        wall, cpu = (statistics.median(s[name][i] for s in seconds) for i in (0, 1))
        share = statistics.median(s[name][1] / s["update"][1] for s in seconds)
        rows.append({"phase": name, "wall_s": f"{wall:.3f}", "cpu_s": f"{cpu:.3f}", "share_of_cpu": f"{share:.3f}"})
    return rows


def growth(standard: Load, rounds: int) -> list[dict[str, Any]]:
    """The third table: the cost of our update over the number of rollouts and over their length."""
    micro_batch = standard.prompt + 8 * (standard.length + 1)
    rows: list[dict[str, Any]] = []
    few, long = standard.rollouts // 2, standard.length
    sizes = {
        "rollouts": [(few * factor, long) for factor in (1, 2, 4)],
        "length": [(standard.rollouts, n) for n in (long // 3, long, 2 * long)],
    }
    loads = {
        pair: Load(OURS, *pair, standard.prompt, micro_batch, standard.small)
        for pairs in sizes.values()
        for pair in pairs
    }
    turns = [{pair: measure(load) for pair, load in loads.items()} for _ in range(rounds)]
    for over, pairs in sizes.items():
        cpu = [statistics.median(t[pair]["seconds"]["update"][1] for t in turns) for pair in pairs]
        slope = exponent([rollouts * length for rollouts, length in pairs], cpu)
        for (rollouts, length), second in zip(pairs, cpu, strict=True):
            found = [t[rollouts, length] for t in turns]
            rows.append(
                {
                    "over": over,
                    "rollouts": rollouts,
                    "length": length,
                    "micro_batch_tokens": micro_batch,
                    "update_wall_s": f"{statistics.median(f['seconds']['update'][0] for f in found):.2f}",
                    "update_cpu_s": f"{second:.2f}",
                    "cpu_ms_token": f"{second / rollouts / length * 1000:.2f}",
                    "exponent": f"{slope:.2f}",
                    "peak_gib": f"{statistics.median(f['peak_gib'] for f in found):.2f}",
                    "beyond_gib": f"{statistics.median(f['beyond_gib'] for f in found):.2f}",
                }
            )
    return rows


def main() -> None:
    """Measures, prints the tables and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each run")
    parser.add_argument("--growth-rounds", type=int, default=1, help="turns of each size of the growth; 0 for none")
    parser.add_argument(
        "--runs", nargs="+", choices=RUNS, default=list(RUNS), help=f"what to measure besides {OURS} and {LIMIT}"
    )
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--csv", type=Path, help="file to save the tables to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.worker:
        load = Load(**json.loads(arguments.worker))
        print(json.dumps(RUNS[load.run](load, device)))
        return
    shape = (4, 6, 5) if arguments.small else (16, 96, 67)
    runs = [run for run in RUNS if run in {*arguments.runs, OURS, LIMIT}]
    have = [run for run in runs if run != TRL or importlib.util.find_spec("trl")]
    loads = {run: Load(run, *shape, 0, arguments.small) for run in have}
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    with one_line_errors():
        rounds = []
        for _ in range(arguments.rounds):
            rounds.append({run: measure(load) for run, load in loads.items()})
            print(f"round {len(rounds)} of {arguments.rounds}; load {os.getloadavg()[0]:.1f}", flush=True)
        print(f"{name}; torch {torch.__version__}; {shape[0]} actions of {shape[1]} tokens, prompt {shape[2]}\n")
        tables = {"": comparison(runs, rounds), "_phases": phases(rounds)}
        if arguments.growth_rounds:
            tables["_growth"] = growth(Load(OURS, *shape, 0, arguments.small), arguments.growth_rounds)
        for suffix, rows in tables.items():
            show(rows)
            if arguments.csv:
                save(rows, arguments.csv.with_stem(arguments.csv.stem + suffix))


if __name__ == "__main__":
    main()
