"""Merges a trained policy into its base: a plain model of transformers, which no longer needs an adapter.

In float32 the merged model says what the adapter on its base says, up to rounding. A coarser type rounds the sum of a
weight and what training added to it, which may be smaller than a step of that type; how much this changes is measured
and printed.
"""

from pathlib import Path
from typing import Any

import torch

from etpo_core.errors import UserError
from etpo_paper.model.loading import encode_prompt, load_model
from etpo_paper.use.finished import finished


@torch.inference_mode()
def export(place: Path, out: Path, dtype: str) -> None:
    """Writes the merged model of a finished run and prints what merging cost.

    Args:
        place: the folder of an `etpo fit`.
        out: a new folder.
        dtype: the type of the weights, a name of torch such as "float32".

    Raises:
        UserError: see `finished`; or `out` exists.
    """
    from peft import PeftModel

    asked, run, settings, _, prompt = finished(place)
    if out.exists():
        raise UserError(f"--out {out} exists; expected a new folder")
    base, tokenizer, card = load_model(settings.model, torch.float32)
    model: Any = PeftModel.from_pretrained(base, run.policy)
    best = (run.folder / "best_code.py").read_text(encoding="utf-8")
    ids = [*encode_prompt(tokenizer, prompt, card["format"]), *tokenizer(best, add_special_tokens=False).input_ids]

    def says() -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
        return logits.float().log_softmax(-1)

    before = says()
    model = model.merge_and_unload().to(getattr(torch, dtype))
    off = (before.exp() * (before - says())).sum(-1)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    cost = f"mean {off.mean():.2g}, largest {off.max():.2g} nats"
    (out / "README.md").write_text(_card(run.policy, out, dtype, cost), encoding="utf-8")
    print(f"{out}: {asked.model} with the policy of {place} merged into it, in {dtype}")
    print(
        f"KL divergence from the adapter's next token, over the {len(ids)} tokens of the first prompt and the best "
        f"program: {cost}"
    )


def _card(policy: Path, out: Path, dtype: str, cost: str) -> str:
    """The card of the policy, with how to load the merged model in place of how to load the adapter."""
    text = (
        (policy / "README.md").read_text(encoding="utf-8").replace("library_name: peft", "library_name: transformers")
    )
    before, behind = text.split("## Load it")[0], text.partition("## The first prompt")[2]
    load = (
        f"## Load it\n\nThe adapter is merged into the base, in {dtype}. KL divergence from its next token: {cost}."
        "\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{out.resolve()}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{out.resolve()}")\n```\n\n'
    )
    return f"{before}{load}## The first prompt{behind}"
