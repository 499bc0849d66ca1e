"""Stage `gradients`: what an estimate of the advantage is worth, measured on actions of the untrained model.

    python -m pipeline.gradients --scale tuning

Writes evaluations/{scale}/gradients.csv; what is compared and why stands in `etpo_paper.measure.gradients`.
"""

from collections.abc import Sequence

import torch
from tqdm import tqdm

from etpo_core.errors import UserError
from etpo_core.interfaces import Transition
from etpo_paper.base import distributed, paths
from etpo_paper.base.machine import choose
from etpo_paper.base.provenance import write_rows
from etpo_paper.base.settings import Settings
from etpo_paper.environment.executor import open_executor
from etpo_paper.environment.rollout import collect
from etpo_paper.environment.scikit_learn import episodes
from etpo_paper.measure.gradients import Actions, agreement
from etpo_paper.model.agent import Agent
from etpo_paper.model.head import CHUNK
from etpo_paper.report.results import GRADIENT_COLUMNS
from etpo_paper.training.agents import load_agent
from etpo_paper.training.run import Run
from pipeline import data, entry
from pipeline.resolve import resolve

TOKEN_LAM = 0.95  # of POAD and NTPO, whose sections a finished round of tuning need not have


def written(agent: Agent, settings: Settings, task_name: str, count: int, environments: int) -> list[Transition]:
    """`count` actions of the untrained model on a task, or some more."""
    task, generator, found = data.table(task_name), torch.Generator().manual_seed(0), []
    training = settings.training
    with open_executor(settings.sandbox) as executor, tqdm(total=count, unit="action", desc=task_name) as bar:
        acted_in = episodes(task, executor, settings.environment, environments)
        options = {"max_new_tokens": training.max_new_tokens, "generator": generator, "temperature": 1.0, "top_k": 0}
        while len(found) < count:
            found += collect(agent, acted_in, 1, **options)[0]
            bar.update(environments)
    return found


@torch.no_grad()
def described(agent: Agent, transitions: list[Transition], gamma: float) -> Actions:
    """The actions with their hidden states; what follows a failure is worth the mean reward of later tries."""
    later = {t.next_prompt for t in transitions if not t.terminated}
    rewards = [t.reward for t in transitions if t.prompt in later]
    following = sum(rewards) / max(1, len(rewards))
    ordered, states, scores, means, levels = [], [], [], [], []
    networks = agent.networks
    weight = networks.head_weight.float()
    for batch in networks.batches(transitions):
        sequences = batch.sequences
        hidden, drawn = (sequences.each(v) for v in (networks.hidden("reference", sequences), sequences.tokens))
        ordered += batch.transitions
        states.append(hidden.cpu())
        for part, tokens in zip(hidden.split(CHUNK), drawn.split(CHUNK), strict=True):
            logits = part @ weight.T
            mean = logits.softmax(-1) @ weight
            scores.append((weight[tokens] - mean).cpu())
            means.append(mean.cpu())
            levels.append(logits.logsumexp(-1).cpu())
    returns = torch.tensor([t.reward + (0.0 if t.terminated else gamma * following) for t in ordered])
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(t.prompt for t in ordered))}
    return Actions(
        returns=returns,
        lengths=torch.tensor([len(t.action) for t in ordered]),
        states=torch.cat(states),
        scores=torch.cat(scores),
        means=torch.cat(means),
        levels=torch.cat(levels),
        groups=torch.tensor([number[t.prompt] for t in ordered]),
    )


def run(scale: str) -> None:
    """Lets the untrained model act on the scale's first task, compares, and writes the table.

    Raises:
        UserError: the scale does not say how to compare.
    """
    settings = resolve(scale)
    g, task = settings.gradients, settings.tasks[0]
    if g is None:
        raise UserError(f"scales.{scale} of {settings.file} has no section gradients; see studies/tuning/params.yaml")
    device = distributed.device()
    precision = choose(settings.training.precision).precision if device.type == "cpu" else ""
    agent = load_agent(Run(scale, "reflection", task, 0), settings, device, False, precision)
    found = written(agent, settings, task, g.actions, g.environments)
    actions = described(agent, found, settings.methods.etpo.gamma)
    rows = agreement(
        actions,
        known=g.known,
        lams=g.lams,
        ridge=settings.methods.etpo.value_ridge,
        batch=settings.training.environments * settings.training.steps_per_update,
        draws=g.draws,
        generator=torch.Generator().manual_seed(0),
        beta=settings.methods.etpo.beta,
        gamma=settings.methods.etpo.gamma,
        lam=TOKEN_LAM,
    )
    path = paths.EVALUATIONS / scale / "gradients.csv"
    # What is None is an empty cell.
    cells = ((r["method"], r["known"], r["lam"], f"{r['cosine']:.6g}", f"{r['error']:.6g}") for r in rows)
    write_rows(path, GRADIENT_COLUMNS, ((task, len(found), *row) for row in cells))
    print(f"{len(found)} actions: {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    entry.run_scale(run, __doc__, argv, example="tuning")


if __name__ == "__main__":
    main()
