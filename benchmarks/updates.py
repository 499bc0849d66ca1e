"""One update of every method on the same batch: CPU time and memory as ratios to ETPO's, beside the arithmetic.

A model of SmolLM2's shape writes 16 actions of 32 tokens, once. Every method then updates in a copy of this process
(`os.fork`), so that all begin with the same weights and the same memory. Methods take turns, and the median over the
turns is shown. Settings are those of `params.yaml`, passes over a batch included. The actions end their episodes:
states that follow and are not acted in would cost a run over them. Run it with one thread.

"runs" and "gradients" count runs of networks over the batch without and with a gradient, of the layers that have
adapters; those below are computed once for all roles. "products" are the operations of all matrix products, counted
while they run. "needs" are the runs that the equations ask for (`NEEDS`), a gradient counted as three, relative to
ETPO's, and "of_need" is the ratio of CPU times over that.

    OMP_NUM_THREADS=1 python -m benchmarks.updates --csv benchmarks/tables/updates.csv
"""

import argparse
import json
import os
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pipeline  # noqa: F401  sets how threads wait, which torch reads when it is loaded

# isort: split
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.executor import save, show
from benchmarks.head import resident_mib
from benchmarks.update import language_model, numbers
from etpo_core.errors import one_line_errors
from etpo_core.interfaces import Alone, Method, Transition
from etpo_paper.base.machine import choose
from etpo_paper.base.settings import Settings, load_settings
from etpo_paper.environment.prompts import Prompt
from etpo_paper.methods import build_method
from etpo_paper.model.agent import Agent
from etpo_paper.model.loading import CONTINUATION

# Runs that the equations ask for: without a gradient, with one in each pass. The policy that drew the batch is that of
# the first pass, so its probabilities need no run of their own.
NEEDS = {
    "etpo": (1, 1),  # the reference; the critic, which the policy becomes
    "etpo_action_level": (1, 1),
    "etpo_memory": (1, 1),  # and one action more
    "etpo_on_logits": (2, 2),  # the reference and the target critic; policy and critic
    "ppo_kl": (1, 1),  # the reference; the policy
    "ppo_kl_memory": (1, 1),
    "poad": (1, 2),  # the reference; policy and critic
    "tbrm": (1, 1),
    "shiq": (1, 1),
    "oreo": (1, 2),
    "grpo": (1, 1),
    "rloo": (1, 1),
    "released": (1, 2),  # the target critic; policy and critic
}
GRADIENT = 3  # runs that one with a gradient costs


def need(name: str, settings: Settings) -> float:
    """Runs of an update, a gradient counted as `GRADIENT`."""
    without, gradients = NEEDS[name]
    return without + GRADIENT * gradients * int(settings.methods[name].plain().get("epochs", 1))


def linear_operations(x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    """Operations of a product with a weight that oneDNN has laid out, which the counter does not know."""
    return 2 * int(torch.Size(x).numel()) * int(weight[0])


def watched(networks: Any) -> Counter[str]:
    """Counts the tokens that go through the layers with adapters, with and without a gradient."""
    seen: Counter[str] = Counter()
    function = networks._hidden

    def counted(role: str, sequences: Any, grad: bool) -> Tensor:
        seen["gradients" if grad else "runs"] += len(sequences.tokens)
        return function(role, sequences, grad)

    networks._hidden = counted
    return seen


def forked(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What a function finds in a copy of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writer, json.dumps(work()).encode())
            status = 0
        except Exception:
            traceback.print_exc()  # here, because nothing leaves this process but what is written
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("an update failed, see above")
    return json.loads(text)


def timed(method: Method, agent: Agent, batch: Sequence[Transition]) -> dict[str, float]:
    """CPU seconds of an update, and MiB beyond what was in memory before it."""
    method.start(agent.networks, Alone())
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    memory, before = resident_mib("VmRSS"), time.process_time()
    method.update(batch)
    return {"cpu_s": time.process_time() - before, "mib": resident_mib("VmHWM") - memory}


def counted(method: Method, agent: Agent, batch: Sequence[Transition]) -> dict[str, float]:
    """Runs of networks over the batch, and operations of matrix products."""
    method.start(agent.networks, Alone())
    seen, tokens = watched(agent.networks), sum(len(t.action) for t in batch)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: linear_operations})
    with counter:
        method.update(batch)
    return {key: seen[key] / tokens for key in ("runs", "gradients")} | {"products": counter.get_total_flops()}


def written(small: bool) -> tuple[Agent, list[Transition]]:
    """An agent, and the batch that it wrote."""
    count, length, prompt_tokens = (4, 6, 5) if small else (16, 32, 67)
    training = load_settings("laptop").training
    model = language_model(small, "cpu", torch.float32)
    agent = Agent(
        model,
        numbers(model.config.vocab_size),
        {"format": CONTINUATION, "eos_token_id": -1},  # no token has this id, so every action has the full length
        rank=training.lora_rank,
        alpha=training.lora_alpha,
        layers=training.lora_layers,
        seed=0,
        precision=choose(training.precision).precision,
        momentum=training.momentum,
        grad_norm=training.grad_norm,
        micro_batch_tokens=training.micro_batch_tokens,
    )
    prompt = Prompt(" ".join(map(str, range(3, 3 + prompt_tokens))), "")
    actions = agent.act([prompt] * count, max_new_tokens=length, generator=torch.Generator().manual_seed(0))
    ids = agent.encode(prompt)
    rewards = [-1.0 if i % 3 else 0.8 for i in range(count)]  # arbitrary: no cost depends on them
    return agent, [Transition(ids, a.tokens, a.log_probs, r, True, None) for a, r in zip(actions, rewards, strict=True)]


def table(
    settings: Settings, turns: Sequence[dict[str, dict[str, float]]], counts: dict[str, dict[str, float]]
) -> list:
    """A row for each method, from what each turn and the counter found."""

    def ratio(name: str, key: str) -> float:
        return statistics.median(turn[name][key] / turn["etpo"][key] for turn in turns)

    rows = []
    for name in turns[0]:
        needed = need(name, settings) / need("etpo", settings)
        rows.append(
            {
                "method": name,
                "passes": settings.methods[name].plain().get("epochs", 1),
                "runs": f"{counts[name]['runs']:.1f}",
                "gradients": f"{counts[name]['gradients']:.1f}",
                "cpu_s": f"{statistics.median(turn[name]['cpu_s'] for turn in turns):.2f}",
                "mib": f"{statistics.median(turn[name]['mib'] for turn in turns):.0f}",
                "cpu_of_etpo": f"{ratio(name, 'cpu_s'):.2f}",
                "mib_of_etpo": f"{ratio(name, 'mib'):.2f}",
                "products_of_etpo": f"{counts[name]['products'] / counts['etpo']['products']:.2f}",
                "needs_of_etpo": f"{needed:.2f}",
                "of_need": f"{ratio(name, 'cpu_s') / needed:.2f}",
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints the table and saves it; returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="updates of each method")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--csv", type=Path, help="file to save the table to")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a copy of a process has none of its threads
    settings = load_settings("laptop")
    agent, batch = written(chosen.small)

    def fresh(name: str) -> Method:
        return build_method(name, settings.methods[name].plain())

    # The first pass lays out weights and fills caches. A copy would lose them, so it happens here, without a step.
    warm = fresh("etpo")
    warm.start(agent.networks, Alone())
    for micro_batch in agent.networks.batches(batch):
        terms = agent.networks.terms(micro_batch, 0.1, policy="critic")
        (terms.advantage.sum() * 0).backward()
    forked(lambda: timed(fresh("etpo"), agent, batch))  # the first copy is slower than those that follow
    turns = [
        {name: forked(lambda name=name: timed(fresh(name), agent, batch)) for name in NEEDS}
        for _ in range(chosen.turns)
    ]
    counts = {name: forked(lambda name=name: counted(fresh(name), agent, batch)) for name in NEEDS}
    print(f"{len(batch)} actions, {sum(len(t.action) for t in batch)} tokens; load {os.getloadavg()[0]:.1f}\n")
    rows = table(settings, turns, counts)
    show(rows)
    if chosen.csv:
        save(rows, chosen.csv)
    return rows


if __name__ == "__main__":
    with one_line_errors():
        main()
