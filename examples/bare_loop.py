"""ETPO's losses in a loop of your own: a small GPT-2 with random weights learns to write even tokens.

    python examples/bare_loop.py    # some ten seconds on one core

An action is up to eight tokens; token 0 ends it. Its reward is the number of its other even tokens, over eight. Policy,
critic and reference are three copies of one model here; adapters of one model serve as well.
"""

import copy

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from etpo_core.bellman import kl_divergence, lambda_targets, position_mask, taken
from etpo_core.interfaces import Alone
from etpo_core.losses import advantage_square, critic_loss, policy_loss, q_dueling
from etpo_core.value import LeastSquaresValue

TOKENS = 8
BETA, GAMMA, LAM, PRIOR = 0.02, 1.0, 0.95, 0.05  # reward per nat of KL, discount, λ, weight of E_π[A²]


def three_networks() -> dict[str, GPT2LMHeadModel]:
    """Equal networks without dropout: π must be the same when it writes and when it learns."""
    off = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=32, n_embd=64, n_layer=2, n_head=2, **off))
    return {"policy": model, "critic": copy.deepcopy(model), "reference": copy.deepcopy(model).requires_grad_(False)}


@torch.no_grad()
def write(policy: GPT2LMHeadModel, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draws an action for each prompt [B, P]; returns tokens [B, T], lengths [B], end token included, and rewards."""
    ids = prompts
    for _ in range(TOKENS):  # from π itself: drawn from another distribution, targets need `importance`
        ids = torch.cat([ids, torch.softmax(policy(ids).logits[:, -1], dim=-1).multinomial(1)], dim=1)
    tokens = ids[:, prompts.shape[1] :]
    running = (tokens == 0).cumsum(dim=1) == 0
    return tokens, (running.sum(dim=1) + 1).clamp(max=TOKENS), (running & (tokens % 2 == 0)).sum(dim=1) / TOKENS


def at_prefixes(model: GPT2LMHeadModel, prompts: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V] and hidden states [B, T, K] at the prefixes from which the tokens are drawn.

    A causal model says one place to the left of a token what is to come there: of the first, at the prompt's end.
    """
    out = model(torch.cat([prompts, tokens], dim=1), output_hidden_states=True)
    places = slice(prompts.shape[1] - 1, -1)
    return out.logits[:, places], out.hidden_states[-1][:, places]


def etpo_loss(
    logits: dict[str, Tensor], features: Tensor, v: LeastSquaresValue, tokens: Tensor, lengths: Tensor, reward: Tensor
) -> Tensor:
    """The loss of policy and critic, a mean over tokens. Step, and then call `v.fit`.

    Args:
        logits: [B, T, V] of "policy", "critic" and "reference" at the prefixes.
        features: [B, T, K] that V is linear in; they must never change, so they are the reference's hidden states.
        v: V as fitted to the batches before.
        tokens, lengths, reward: as `write` returns them.
    """
    mask = position_mask(lengths, tokens.shape[1])
    with torch.no_grad():
        value = torch.zeros_like(features[..., 0]).masked_scatter(mask, v(features[mask]))
        kl = kl_divergence(logits["policy"], logits["reference"])
        # Here each action ends its episode. Where a state follows, give its soft value in place of the zeros: V - β KL
        # at the end of the next prompt.
        ends = lengths, reward, torch.ones_like(reward, dtype=torch.bool), torch.zeros_like(reward)
        returns = lambda_targets(value, kl, *ends, BETA, GAMMA, lam=1.0)
        targets = lambda_targets(value, kl, *ends, BETA, GAMMA, LAM) if v.fitted else returns
        v.observe(features[mask], returns[mask])
    q = q_dueling(value, logits["critic"], logits["reference"], logits["policy"], BETA)
    loss = policy_loss(logits["policy"], logits["reference"], q, BETA)  # its gradient reaches the policy alone
    loss = loss + critic_loss(taken(q, tokens), targets, mask) + PRIOR * advantage_square(logits["policy"], q)
    return loss[mask].mean()


def main(updates: int = 60) -> list[float]:
    """Trains, and returns the mean reward of each batch."""
    networks, v, rewards = three_networks(), LeastSquaresValue(decay=0.9, ridge=0.5), []
    learning = [*networks["policy"].parameters(), *networks["critic"].parameters()]
    optimiser = torch.optim.AdamW(learning, lr=2e-3, weight_decay=0.0)
    prompts = torch.ones(32, 1, dtype=torch.long)
    for update in range(updates):
        tokens, lengths, reward = write(networks["policy"], prompts)
        found = {role: at_prefixes(model, prompts, tokens) for role, model in networks.items()}
        logits = {role: of_role for role, (of_role, _) in found.items()}
        etpo_loss(logits, found["reference"][1], v, tokens, lengths, reward).backward()
        optimiser.step()
        optimiser.zero_grad()
        v.fit(Alone())
        rewards.append(float(reward.mean()))
        if update % 10 == 9:
            print(f"update {update + 1}: mean reward {sum(rewards[-10:]) / 10:.2f}")
    return rewards


if __name__ == "__main__":
    torch.set_num_threads(1)  # a model of this size gains nothing from more
    main()
