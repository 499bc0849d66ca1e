"""The trained policy as others get it: an adapter in peft's format, its tokenizer, and a card that says what it is.

Whoever has the folder needs nothing of this package: `PeftModel.from_pretrained` puts it on the base that the card
names, and the card shows the first prompt that the policy was trained on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from etpo_paper.base import paths
from etpo_paper.base.settings import Settings
from etpo_paper.model.agent import Agent
from etpo_paper.report.names import counted, label
from etpo_paper.training.run import Data, Run


def leave_policy(
    run: Run, settings: Settings, data: Data, model_card: Mapping[str, Any], agent: Agent, prompt: str
) -> None:
    """Writes the policy of a run that came to its end.

    Args:
        run: names its folder; its `steps.csv` is complete.
        settings: of its scale and method.
        data: what it was made on.
        model_card: of the model that it began from.
        agent: whose policy it is.
        prompt: the first state of an episode.
    """
    agent.save_policy(run.policy)
    agent.tokenizer.save_pretrained(run.policy)
    steps = pd.read_csv(run.folder / "steps.csv")
    text = policy_card(run, settings, data, model_card, steps, prompt)
    (run.policy / "README.md").write_text(text, encoding="utf-8")


def policy_card(
    run: Run, settings: Settings, data: Data, model_card: Mapping[str, Any], steps: pd.DataFrame, prompt: str
) -> str:
    """The model card of a policy, in the form of the Hugging Face hub.

    Args:
        run: see `leave_policy`.
        settings: see `leave_policy`.
        data: see `leave_policy`.
        model_card: see `leave_policy`.
        steps: the rows of its `steps.csv`.
        prompt: see `leave_policy`.
    """
    method = settings.methods[run.method].plain()
    ours = "path" not in model_card
    place = Path(model_card.get("path", paths.MODELS / settings.model)).resolve()
    batch = settings.training.environments * settings.training.steps_per_update
    fifth = steps["reward"].iloc[-max(1, len(steps) // 5) :]
    ran = steps.loc[steps["status"] == "ok", "reward"]
    started = model_card.get("warm_start")
    begun = f"a warm start of {started['steps']} steps of supervised fine-tuning" if started else "the base as it comes"
    apache = "Apache-2.0" in str(model_card["source"])
    rows = {
        "Base": f"{settings.model}: {model_card['source']}",
        "Weights of the base": f"SHA-256 `{model_card['sha256']}`",
        "Began from": begun,
        "Stand-ins": "; ".join(str(s) for s in (model_card.get("stand_in"), data.stand_in) if s) or "none",
        "Data": f"{run.task}: {data.source}, SHA-256 `{data.sha256[:16]}...`",
        "Method": f"{label(run.method)}: {', '.join(f'{key} {value}' for key, value in method.items())}",
        "Adapter": f"LoRA of rank {settings.training.lora_rank}, alpha {settings.training.lora_alpha}",
        "Seed": run.seed,
        "Actions": f"{len(steps)}, of which {len(ran)} ran",
        "Mean reward": f"{steps['reward'].iloc[:batch].mean():.3f} over the first batch, {fifth.mean():.3f} over the "
        f"last fifth of the run; the best action earned {f'{ran.max():.3f}' if len(ran) else 'nothing'}",
    }
    head = [
        "---",
        "library_name: peft",
        *([] if ours else [f"base_model: {model_card['source']}"]),
        *(["license: apache-2.0"] if apache else []),
        "tags: [etpo, reinforcement-learning, lora]",
        "---",
    ]
    table = ["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())]
    fence = "````"
    parts = [
        "\n".join(head),
        f"# A policy for {run.task}, trained with {label(run.method)}",
        "A low-rank adapter that was trained with reinforcement learning, as in ETPO (arXiv 2402.06700) or one of its "
        f"baselines, on {counted(len(steps), 'action')} of its own.",
        "\n".join(table),
        "## Load it",
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'base, policy = "{place}", "{run.policy.resolve()}"  # the folder of the base, and this one\n'
        "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), policy)\n"
        "tokenizer = AutoTokenizer.from_pretrained(policy)\n"
        "```",
        "On another machine the two folders have other names. The base has to be the one above, by its hash, because "
        "an adapter means nothing on other weights. "
        + (f"`etpo` makes {settings.model} where it is needed. " if ours else "")
        + "`etpo export` makes a model that needs no base.",
        f"## The first prompt\n\n{fence}\n{prompt}\n{fence}",
        "## Limits",
        "The policy was trained on one task, from one seed, and writes what scored well there. Run what it writes in a "
        "sandbox only. " + ("" if apache else "The licence is that of the base."),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
