"""One frozen language model in four roles: reference, policy, critic and target critic.

The reference is the frozen base itself; the other roles are LoRA adapters of it, so four networks cost one set of
weights; layers below the lowest adapter compute the same for all roles, and do it once. A role is asked for hidden
states at the positions from which action tokens are drawn; what becomes of them - logits, values, losses - is the
business of `head`, `bellman` and `losses`. Token ids are kept from sampling to
loss: text is decoded for the executor and never tokenised again.
"""

import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from etpo_core.errors import UserError
from etpo_paper.base import distributed
from etpo_paper.environment.prompts import Action, Prompt
from etpo_paper.model import llama
from etpo_paper.model.decoder import Decoder, LlamaDecoder, Sampled, TransformersDecoder, sample, shared_length
from etpo_paper.model.drafts import Drafts
from etpo_paper.model.loading import decode_action, encode_prompt

ADAPTERS = ("policy", "critic", "target_critic")
BATCHES_BELOW = 8  # batches at most whose common layers' states are kept for another role or another pass


@dataclass(frozen=True, eq=False)
class Sequences:
    """Prompts followed by actions, padded on the right; what lies where is told by position.

    A policy that has learnt writes the same program again and again. Equal sequences are held, and computed, once: a
    batch of N action positions has M <= N distinct ones, and `each` gives all positions what was computed for those.

    Attributes:
        prefix: token ids [P] that all sequences begin with, held (and by a `llama.Body` computed) once.
        ids: token ids [distinct, S] of what follows.
        rows: index into `ids` of each distinct action position [M], all actions one after another.
        columns: index into S of the hidden state that the action token is drawn from [M].
        tokens: the action tokens [M].
        lengths: tokens of each action [batch]; N is their sum.
        copies: index into the distinct positions of every action position [N], all actions one after another.
    """

    prefix: Tensor
    ids: Tensor
    rows: Tensor
    columns: Tensor
    tokens: Tensor
    lengths: Tensor
    copies: Tensor

    @classmethod
    def pack(cls, prompts: Sequence[Sequence[int]], actions: Sequence[Sequence[int]], device) -> "Sequences":
        """Packs prompts and actions. A prompt and an action must have at least one token."""
        shared = shared_length(prompts)
        pairs = [(tuple(p), tuple(a)) for p, a in zip(prompts, actions, strict=True)]
        distinct = list(dict.fromkeys(pairs))
        whole = [[*p[shared:], *a] for p, a in distinct]
        longest = max(map(len, whole))
        index = [(row, len(p) - shared - 1 + j, t) for row, (p, a) in enumerate(distinct) for j, t in enumerate(a)]
        rows, columns, tokens = torch.tensor(index, device=device).T
        starts = dict(zip(distinct, itertools.accumulate((len(a) for _, a in distinct), initial=0), strict=False))
        return cls(
            prefix=torch.tensor(prompts[0][:shared], dtype=torch.long, device=device),
            ids=torch.tensor([w + [0] * (longest - len(w)) for w in whole], device=device),
            rows=rows,
            columns=columns,
            tokens=tokens,
            lengths=torch.tensor([len(a) for a in actions], device=device),
            copies=torch.tensor([starts[pair] + j for pair in pairs for j in range(len(pair[1]))], device=device),
        )

    def each(self, values: Tensor) -> Tensor:
        """Gives every action position [N, ...] the values of its distinct one [M, ...]; gradients add up."""
        return values[self.copies]

    def to_padded(self, values: Tensor) -> Tensor:
        """Spreads values of action positions [N] over a matrix [batch, longest action], 0 beyond an action's end."""
        starts = self.lengths.cumsum(0) - self.lengths
        actions = torch.arange(len(self.lengths), device=values.device).repeat_interleave(self.lengths)
        position = torch.arange(len(values), device=values.device) - starts[actions]
        padded = values.new_zeros(len(self.lengths), int(self.lengths.max()))
        return padded.index_put((actions, position), values)

    def to_flat(self, padded: Tensor) -> Tensor:
        """The inverse of `to_padded`: [batch, longest action] to [N]."""
        return padded[torch.arange(padded.shape[1], device=padded.device) < self.lengths[:, None]]


def _where(model: nn.Module, layers: int) -> dict:
    """peft's description of all linear products but the output head, which stays frozen and common to all roles."""
    count = model.config.num_hidden_layers
    if layers < 0:
        raise UserError(f"training.lora_layers is {layers}; expected a number of layers, or 0 for all")
    if layers == 0 or layers >= count:
        return {"target_modules": "all-linear"}
    linear = {name.rpartition(".")[2] for name, m in model.base_model.named_modules() if isinstance(m, nn.Linear)}
    return {"target_modules": sorted(linear), "layers_to_transform": list(range(count - layers, count))}


class Agent:
    """A causal language model with adapters for each trained role.

    Args:
        model: the frozen base, as `language_model.load_model` returns it.
        tokenizer: its tokenizer.
        card: its card (`format` of prompts, `eos_token_id`).
        rank: LoRA rank of every adapter; `None` for an agent that is never trained.
        alpha: LoRA scale, alpha / rank.
        layers: how many of the last layers have adapters; 0, or more than there are, for all.
        seed: of the adapters' initial weights.
        precision: "float32", or "bfloat16" to run the body's products in bfloat16 (autocast), and those of the head but
            for the policy's own logits, which are float32 products with the head's weights rounded to bfloat16.
    """

    def __init__(
        self, model, tokenizer, card, *, rank: int | None, alpha: int, seed: int, precision: str, layers: int = 0
    ):
        self.tokenizer, self.card = tokenizer, card
        self.device = next(model.parameters()).device
        self.compute_dtype = getattr(torch, precision)
        model.requires_grad_(False)
        causal = model
        self._output = causal.get_output_embeddings().weight.detach()
        self.head_weight = self._output.to(self.compute_dtype)
        self.value_heads = nn.ModuleDict()
        if rank is not None:
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, **_where(model, layers))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers, not ours to mend
                model = get_peft_model(model, config, adapter_name="policy")
                for adapter in ADAPTERS[1:]:
                    model.add_adapter(adapter, config)
            for adapter in ADAPTERS[1:]:
                head = nn.Linear(self.head_weight.shape[1], 1).to(self.device)
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
                self.value_heads[adapter] = head
        self.model = model.eval()  # no dropout anywhere: a pass depends on its input alone
        self.trainable = rank is not None
        self._parameters: dict[str, list[nn.Parameter]] = {}
        if self.trainable:
            self._parameters = {
                adapter: [p for n, p in model.named_parameters() if f".{adapter}." in n] for adapter in ADAPTERS
            }
            self._mark_trainable()
            self.track(("critic", "target_critic"), 0.0)
        self._causal = causal
        self._body = llama.Body(model, self.compute_dtype) if llama.fits(model) else None
        self._below = weakref.WeakKeyDictionary()  # what the roles have in common, of the last batches that still live
        self._decoder: Decoder | None = None
        self.drafts = Drafts()
        # A state is asked for when it is reached, when it is acted in and when its transition is kept.
        self._encode = lru_cache(maxsize=256)(
            lambda prompt: tuple(encode_prompt(self.tokenizer, prompt, self.card["format"]))
        )

    # Roles -----------------------------------------------------------------------------------------------------

    def parameters(self, adapter: str) -> list[nn.Parameter]:
        """The LoRA weights of an adapter."""
        return self._parameters[adapter]

    def _check(self, role: str) -> None:
        if not self.trainable and role not in ("reference", "policy"):
            raise ValueError(f"role {role!r} of an agent without adapters; expected reference or policy")

    def _mark_trainable(self) -> None:
        """Gradients for policy and critic; the target critic follows by averaging and never has one."""
        for adapter in ADAPTERS:
            for parameter in self._parameters[adapter]:
                parameter.requires_grad_(adapter != "target_critic")

    @contextmanager
    def _role(self, role: str) -> Iterator[None]:
        """Makes the transformers model compute what a role computes."""
        if not self.trainable:
            yield
        elif role == "reference":
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter(role)
            # peft freezes every adapter but the active one, and a frozen leaf would not get the gradient of a graph
            # that was built before.
            self._mark_trainable()
            yield

    def hidden(self, role: str, sequences: Sequences, grad: bool = False) -> Tensor:
        """Last hidden states [M, H] in float32 at the distinct positions that action tokens are drawn from.

        Args:
            role: reference, policy, critic or target_critic.
            sequences: prompts and actions.
            grad: whether a graph is kept for the role's adapter.
        """
        self._check(role)
        with torch.set_grad_enabled(grad):
            if self._body is not None:
                adapter = role if self.trainable and role != "reference" else None
                if sequences not in self._below:
                    while len(self._below) >= BATCHES_BELOW:  # memory must not grow with the batches of an update
                        del self._below[next(iter(self._below))]
                    self._below[sequences] = self._body.below(sequences.prefix, sequences.ids)
                out = self._body.hidden(sequences.prefix, sequences.ids, adapter, self._below[sequences])
            else:
                with self._role(role):
                    out = self._transformers_hidden(sequences)
            return out[sequences.rows, sequences.columns]

    def _transformers_hidden(self, sequences: Sequences) -> Tensor:
        """The same states [batch, S, H] through transformers, for any architecture."""
        shared = len(sequences.prefix)
        ids = torch.cat([sequences.prefix.expand(len(sequences.ids), -1), sequences.ids], dim=1)
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            # Padding stands on the right, where no position before it looks: there is nothing to mask.
            out = self._causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return out[:, shared:].float()

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [n, vocabulary] in float32 of hidden states [n, H]."""
        return hidden @ self._output.float().T

    def features(self, hidden: Tensor) -> Tensor:
        """What values are read off, [N, H], from hidden states [N, H].

        The states are scaled by 1 / sqrt(H), so that one optimiser step of a value head moves the value by about its
        learning rate times sqrt(H), whatever the width of the model.
        """
        return hidden * hidden.shape[-1] ** -0.5

    def value(self, adapter: str, hidden: Tensor) -> Tensor:
        """The scalar value [N] that an adapter's value head reads off hidden states [N, H]."""
        return self.value_heads[adapter](self.features(hidden)).squeeze(-1)

    @torch.no_grad()
    def track(self, roles: tuple[str, str], tau: float) -> None:
        """Polyak update: the second role keeps `tau` of itself and takes the rest from the first.

        A policy has no value head; with `tau` 0 it becomes the policy that has the first role's weights.
        """
        source, target = roles
        pairs = list(zip(self._parameters[source], self._parameters[target], strict=True))
        if target in self.value_heads:
            pairs += zip(self.value_heads[source].parameters(), self.value_heads[target].parameters(), strict=True)
        for new, old in pairs:
            old.mul_(tau).add_(new, alpha=1.0 - tau)

    # Acting ----------------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a state; those of the last states asked for are remembered."""
        return self._encode(prompt)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token of an action; the end token has none."""
        end = self.card["eos_token_id"]
        return ["" if token == end else self.tokenizer.decode([token]) for token in tokens]

    def refresh(self) -> None:
        """Hands the policy's current weights to the decoder; call it after every update."""
        adapter = "policy" if self.trainable else None
        if isinstance(self._decoder, LlamaDecoder):
            self._decoder.load(adapter)
        elif llama.fits(self.model):
            self._decoder = LlamaDecoder(self.model, self.compute_dtype, adapter)
        else:
            self._decoder = TransformersDecoder(self.model)

    @property
    def decoder_name(self) -> str:
        """Which decoder writes the actions."""
        return type(self._decoder).__name__

    def act(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        top_k: int = 0,
        ended: Callable[[str], None] | None = None,
    ) -> list[Action]:
        """Samples an action of the policy for each state; see `decoder.sample`.

        `ended` is called with the body of each action as soon as it is written, in whatever order that is.
        """
        if self._decoder is None:
            self.refresh()
        end = self.card["eos_token_id"]
        ids = [self.encode(p) for p in prompts]
        # The bare decoder has the policy's weights already; transformers computes with the adapter that is switched on.
        own = isinstance(self._decoder, LlamaDecoder)

        def body(s: Sampled) -> str:
            return decode_action(self.tokenizer, s.tokens, end)

        told = None if ended is None else lambda _, s: ended(body(s))
        with nullcontext() if own else self._role("policy"):
            sampled = sample(self._decoder, ids, end, max_new_tokens, generator, temperature, top_k, told, self.drafts)
        self.drafts.observe(distributed.merge([s.tokens for s in sampled]))
        return [Action(body(s), len(s.tokens), s.tokens, s.log_probs, s.finished) for s in sampled]

    # State -----------------------------------------------------------------------------------------------------

    def get_state(self) -> dict:
        """Adapters, value heads and what guesses are made from, for a checkpoint."""
        return {
            "adapters": {a: [p.detach().clone() for p in ps] for a, ps in self._parameters.items()},
            "value_heads": {k: v.clone() for k, v in self.value_heads.state_dict().items()},
            # Guesses change no action, but which rows are computed together, and with it the last digits.
            "drafts": self.drafts.get_state(),
        }

    def save_policy(self, folder: Path) -> None:
        """Writes the policy's adapter in peft's format."""
        self.model.save_pretrained(folder, selected_adapters=["policy"])
        saved = folder / "policy"  # peft puts a named adapter into a folder of that name
        if saved.is_dir():
            for file in saved.iterdir():
                file.replace(folder / file.name)
            saved.rmdir()

    @torch.no_grad()
    def set_state(self, state: dict) -> None:
        """Restores what `get_state` returned."""
        for adapter, values in state["adapters"].items():
            for parameter, value in zip(self._parameters[adapter], values, strict=True):
                parameter.copy_(value)
        self.value_heads.load_state_dict(state["value_heads"])
        self.drafts.set_state(state.get("drafts", ()))  # an older checkpoint has none
        self.refresh()
