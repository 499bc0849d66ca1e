"""The output head of a language model: one matrix W that its logits are a product with, W h, or else a refusal.

The losses over the whole vocabulary (`head`), the warm start and perplexity take the last hidden states h of a model
and multiply them with W themselves. Most models do the same. Some add a bias, divide the logits by a constant or send
them through a tanh, and what was computed here would then silently differ from what the model samples. So whoever needs
W asks `output_weight` for it, which tries the model's own head on hidden states whose logits are known.
"""

from typing import Any

import torch
from torch import Tensor, nn

from etpo_core.errors import UserError

LARGEST = 50.0  # the largest logit of the trial: as large as logits become, so that no cap on them stays unseen


def causal_model(model: nn.Module) -> Any:
    """The transformers model inside a peft wrapper, or the model itself.

    The type is left open because attributes of a module are tensors or modules to a type checker, never configurations.
    """
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def output_weight(model: nn.Module) -> Tensor:
    """The weight W [V, H] of the head of a model whose logits are W h.

    The model runs once on three tokens. Behind its body their hidden states are replaced: by 0, whose logits must be 0,
    and by two states with logits up to `LARGEST`, which must be W h up to rounding.

    Args:
        model: a causal language model of transformers, plain or wrapped by peft.

    Raises:
        UserError: its logits are something else; the line names the model's class and what differs.
    """
    causal = causal_model(model)
    kind, body, head = type(causal).__name__, causal.base_model, causal.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if body is causal or weight is None:
        raise UserError(f"{kind} cannot be used: expected a language model with a body and one matrix as its head")
    weight, generator = weight.detach(), torch.Generator().manual_seed(0)
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    states = torch.randn(3, weight.shape[1], generator=generator).to(wide.device, wide.dtype)
    states *= LARGEST / (states @ wide.T).abs().amax(-1, keepdim=True).clamp(min=1e-30)
    states[0] = 0

    def replaced(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal states
        states = states.to(output.last_hidden_state.dtype)
        output["last_hidden_state"] = states[None]
        return output

    # Some models call the decoder inside of their body, and not the body itself.
    hooks = [module.register_forward_hook(replaced) for module in {body, causal.get_decoder()} - {None, causal}]
    try:
        ids = torch.zeros(1, len(states), dtype=torch.long, device=weight.device)
        logits = causal(input_ids=ids, use_cache=False).logits[0].to(wide.dtype)
    finally:
        for hook in hooks:
            hook.remove()
    expected = states.to(wide.dtype) @ wide.T
    rounding = 4 * max(torch.finfo(t.dtype).eps for t in (states, weight)) + 1e-4
    if logits.shape == expected.shape and not logits[0].any() and (logits - expected).abs().max() <= rounding * LARGEST:
        return weight
    differs = ["a head bias"] if logits[0].any() else []
    for key, value in causal.config.to_dict().items():
        if "logit" in key and not key.startswith(("attn", "router")) and value not in (None, False, 1):
            differs.append(f"{key} {value}")
    raise UserError(
        f"{kind} cannot be used: its logits are not its last hidden states times one matrix, as the losses over the "
        f"whole vocabulary need them ({', '.join(differs) or 'its head computes something else'}); choose another model"
    )
