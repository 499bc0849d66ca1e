"""What does it cost to bootstrap at the step limit, when a policy begins where nearly every try fails?

A small world has five tries an episode. An action whose first token is the right one runs, earns 0.8 and ends the
episode; every other one earns -1. The policy starts where the right token has a chance of 1 in 1,200. Under the paper's
rule the fifth try ends the episode, so no state is worth less than five failures. With the bootstrap the fifth failure
leads on to another try, and a policy that always fails is worth -1 / (1 - gamma) = -100, towards which V sinks as long
as it fails. Then a success is above V by so much that all tokens drawn with it, right or not, are pushed up alike.

"lowest V" is the least value of a state over the run, "half run" the first update from which half of the tries run over
eight updates (empty: never in 400), "runs at the end" the share over the last twenty. Prints a table; `--csv FILE` also
saves it.

    python -m benchmarks.step_limit --csv step_limit.csv
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from etpo_core.errors import one_line_errors
from etpo_core.interfaces import Alone
from etpo_core.update import ETPO
from etpo_paper.tabular.learning import TabularEnvironments
from etpo_paper.tabular.networks import TabularNetworks
from etpo_paper.tabular.worlds import World, random_world

TRIES, RIGHT, BELOW = 5, 0, 6.0  # tries of an episode; the first token that runs; by how much its logit starts lower
SETTINGS = {
    "beta": 0.05,
    "gamma": 0.99,
    "lam": 1.0,
    "tau": 0.9,
    "advantage_prior": 0.05,
    "policy_lr": "exact",
    "critic_lr": 0.1,
    "value_decay": 0.9,
    "value_ridge": 0.001,
    "epochs": 1,
    "reflect": True,
}


def tries(bootstrap_at_limit: bool) -> World:
    """The world: state k is the try number k + 1; the last failure ends the episode, or leads to the same try again."""
    world = random_world(0, states=TRIES, vocabulary=4, longest=2)
    runs = (world.tokens[:, 0] == RIGHT).expand(world.reward.shape)
    onward = torch.zeros_like(world.transition)
    for state in range(TRIES):
        onward[state, :, min(state + 1, TRIES - 1)] = 1
    ended = runs.clone()
    ended[-1] |= not bootstrap_at_limit
    return replace(
        world,
        transition=onward,
        reward=torch.where(runs, 0.8, -1.0).double(),
        terminated=ended,
        reference_logits=torch.zeros_like(world.reference_logits),
    )


def failing(world: World) -> TabularNetworks:
    """Networks that hardly ever draw the right token first."""
    networks = TabularNetworks(world)
    with torch.no_grad():
        for role in ("policy", "critic"):
            (table,) = networks.parameters(role)
            table.view(TRIES, -1, 4)[:, 0, RIGHT] -= BELOW
    return networks


def learn(bootstrap_at_limit: bool, seed: int, updates: int) -> Iterator[tuple[float, float]]:
    """The share of tries that ran, and the least V of a state, for each update of ETPO."""
    world = tries(bootstrap_at_limit)
    networks, environments = failing(world), TabularEnvironments(world, 8, seed)
    method = ETPO(**SETTINGS)
    method.start(networks, Alone())
    states = torch.eye(TRIES * world.reference_logits.shape[1])
    for _ in range(updates):
        batch = environments.collect(networks.policy_logits, 2)
        method.update(batch)
        values = method.value(states).view(TRIES, -1)[:, 0]
        yield sum(t.reward > 0 for t in batch) / len(batch), float(values.min())


def measure(updates: int, seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each rule and seed."""
    for bootstrap in (False, True):
        for seed in range(seeds):
            shares, values = zip(*learn(bootstrap, seed, updates), strict=True)
            half = (i for i in range(updates - 7) if sum(shares[i : i + 8]) >= 4)
            yield {
                "at the limit": "bootstrap" if bootstrap else "done",
                "seed": seed,
                "lowest V": round(min(values), 2),
                "half run": next(half, None),
                "runs at the end": round(sum(shares[-20:]) / 20, 2),
            }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=400, help="of each run")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each rule")
    parser.add_argument("--csv", type=Path, help="file for the table")
    arguments = parser.parse_args()
    with one_line_errors():
        table = pd.DataFrame(measure(arguments.updates, arguments.seeds)).astype({"half run": "Int64"})
        print(table.to_string(index=False))
        if arguments.csv:
            table.to_csv(arguments.csv, index=False)


if __name__ == "__main__":
    main()
