"""One frozen language model in four roles: reference, policy, critic and target critic.

The reference is the frozen base itself. The other roles are LoRA adapters of it, so four networks cost one set of
weights. Layers below the lowest adapter compute the same for all roles, and do it once for a micro-batch. A role gives
hidden states at the positions from which action tokens are drawn; `head` turns them into losses and their gradients
without ever holding the logits of a whole batch.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from etpo_core.errors import UserError
from etpo_core.interfaces import PolicyTerms, Terms, Transition
from etpo_paper.base import distributed
from etpo_paper.model import llama
from etpo_paper.model.batches import LanguageBatch, Sequences, alone, micro_batches
from etpo_paper.model.head import dueling_terms, own_dueling_terms, statistics, streamed
from etpo_paper.model.on_policy import Gap
from etpo_paper.model.output import output_weight
from etpo_paper.model.trunk import Trunk

Action = tuple[tuple[int, ...], tuple[int, ...]]  # token ids of its prompt, and its own
ADAPTERS = ("policy", "critic", "target_critic")
KEPT = 8  # micro-batches at most for which intermediate states are kept for another role or another pass


def _adapted_modules(model: PreTrainedModel, layers: int, targets: Sequence[str] | None) -> dict[str, Any]:
    """peft's description of the linear products that take adapters.

    These are the ones named, or all but the output head, which stays frozen and common to all roles.

    Raises:
        UserError: a wrong number of layers, a model without linear products in its layers, or without one of the names.
    """
    count = model.config.num_hidden_layers
    if layers < 0:
        raise UserError(f"training.lora_layers is {layers}; expected a number of layers, or 0 for all")
    # GPT-2 and its relatives write a linear product as Conv1D.
    modules = [name for name, m in model.base_model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    linear = {name.rpartition(".")[2] for name in modules if any(part.isdigit() for part in name.split("."))}
    if not linear:
        raise UserError(
            f"{type(model).__name__} cannot be trained: its layers hold no linear product that takes a LoRA adapter; "
            "choose another model"
        )
    for name in targets or ():
        if name not in linear:
            raise UserError(
                f"--lora-targets: the layers of {type(model).__name__} have no linear product called {name!r}; choose "
                f"among {', '.join(sorted(linear))}"
            )
    if layers == 0 or layers >= count:
        return {"target_modules": list(targets) if targets else "all-linear"}
    return {"target_modules": sorted(targets or linear), "layers_to_transform": list(range(count - layers, count))}


class LanguageModelNetworks:
    """The networks of `interfaces.Networks` as adapters of a causal language model.

    Args:
        model: the frozen base, as `loading.load_model` returns it.
        rank: LoRA rank of every adapter; `None` for networks that are never trained: reference and policy are then the
            base itself, and there is no critic.
        alpha: LoRA scale, alpha / rank.
        layers: how many of the last layers have adapters; 0, or more than there are, for all.
        seed: of the adapters' initial weights.
        precision: "float32", or "bfloat16" to run the body's products in bfloat16 (autocast), and those of the head
            except for the policy's own logits, which are float32 products with the head's weights rounded to bfloat16.
        momentum: first beta of AdamW.
        grad_norm: gradient norm at which a step is clipped.
        micro_batch_tokens: tokens in memory at once.
        targets: names of the linear products that have adapters, e.g. "q_proj"; None for all of them.
        trunk: the frozen weights of the model in that precision, if other runs of the process hold them already.

    Attributes:
        gap: how far log π of the first passes is from that under which the tokens were drawn.

    Raises:
        UserError: the model has a head that is not one matrix (see `output`), or takes no such adapters.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        rank: int | None,
        alpha: int,
        layers: int,
        seed: int,
        precision: str,
        momentum: float,
        grad_norm: float,
        micro_batch_tokens: int,
        targets: Sequence[str] | None = None,
        trunk: Trunk | None = None,
    ):
        self.momentum, self.grad_norm, self.micro_batch_tokens = momentum, grad_norm, micro_batch_tokens
        self.trainable = rank is not None
        self.compute_dtype = getattr(torch, precision)
        model.requires_grad_(False)
        self._causal = model
        self._output = output_weight(model)
        self._device = self._output.device
        self.head_weight = self._output.to(self.compute_dtype)
        self._parameters: dict[str, list[nn.Parameter]] = {}
        adapted: Any = model
        if rank is not None:
            torch.manual_seed(seed)
            chosen = _adapted_modules(model, layers, targets)
            config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, **chosen)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers, not ours to mend
                warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft finds out by itself what Conv1D needs
                try:
                    adapted = get_peft_model(model, config, adapter_name="policy")
                except ValueError as error:  # of some kinds of models peft knows that adapters do nothing
                    why = str(error).strip().partition("\n")[0]
                    kind = type(model).__name__
                    raise UserError(f"{kind} takes no LoRA adapters ({why[:200]}); choose another model") from error
                for adapter in ADAPTERS[1:]:
                    adapted.add_adapter(adapter, config)
            self.value_head = nn.Linear(self.head_weight.shape[1], 1).to(self._device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            self._parameters = {
                adapter: [p for n, p in adapted.named_parameters() if f".{adapter}." in n] for adapter in ADAPTERS
            }
            self._mark_trainable()
            self.polyak_update("critic", "target_critic", 0.0)
        self.model = adapted.eval()  # no dropout anywhere: a pass depends on its input alone
        self.trunk, self._body = None, None
        if llama.fits(adapted):
            self.trunk = trunk or Trunk(adapted, self.compute_dtype)
            self._body = llama.Body(adapted, self.compute_dtype, self.trunk.layers)
        # States that several roles or passes need, of the last micro-batches that are still alive.
        self._below: weakref.WeakKeyDictionary[Sequences, Tensor] = weakref.WeakKeyDictionary()
        self._reference: weakref.WeakKeyDictionary[Sequences, Tensor] = weakref.WeakKeyDictionary()
        self._written: dict[Action, Tensor] = {}  # see `remember`
        self.gap, self._unchecked = Gap(), set[Action]()

    @property
    def device(self) -> torch.device:
        """See `Networks.device`."""
        return self._device

    # Micro-batches ----------------------------------------------------------------------------------------------

    def batches(self, transitions: Sequence[Transition]) -> list[LanguageBatch]:
        """See `Networks.batches`: the longest sequences come first."""
        return [LanguageBatch.of(group, self.device) for group in micro_batches(transitions, self.micro_batch_tokens)]

    def state_batches(self, states: Iterable[tuple[int, ...]]) -> list[LanguageBatch]:
        """See `Networks.state_batches`."""
        return self.batches(alone(states))

    def remember(self, prompt: tuple[int, ...], action: tuple[int, ...], below: Tensor) -> None:
        """Keeps what the decoder computed for all roles, until `forget`, so that an update does not compute it again.

        Args:
            prompt: token ids.
            action: token ids.
            below: [prompt + action - 1, H] the residual stream in front of the adapted layers (`Body.below`).
        """
        self._written[prompt, action] = below
        self._unchecked.add((prompt, action))

    def forget(self) -> None:
        """Drops what `remember` kept."""
        self._written.clear()
        self._unchecked.clear()

    # Roles ------------------------------------------------------------------------------------------------------

    def parameters(self, role: str) -> list[nn.Parameter]:
        """The LoRA weights of a role."""
        return self._parameters[role]

    def _mark_trainable(self) -> None:
        """Gradients for policy and critic; the target critic follows by averaging and never has one."""
        for adapter in ADAPTERS:
            for parameter in self._parameters[adapter]:
                parameter.requires_grad_(adapter != "target_critic")

    @contextmanager
    def switched_to(self, role: str) -> Iterator[None]:
        """Makes the transformers model compute what a role computes."""
        if not self.trainable:
            yield
        elif role == "reference":
            with self.model.disable_adapter():
                yield
            self._mark_trainable()  # leaving the block, peft has the active adapter learn and no other
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

        Raises:
            ValueError: a role with an adapter, of networks without adapters.
        """
        if not self.trainable and role not in ("reference", "policy"):
            raise ValueError(f"role {role!r} of networks without adapters; expected reference or policy")
        if role != "reference":
            return self._hidden(role, sequences, grad)
        if sequences not in self._reference:
            self._make_room(self._reference)
            self._reference[sequences] = self._hidden(role, sequences, False)
        return self._reference[sequences]

    def _hidden(self, role: str, sequences: Sequences, grad: bool) -> Tensor:
        with torch.set_grad_enabled(grad):
            if self._body is not None:
                adapter = role if self.trainable and role != "reference" else None
                if sequences not in self._below:
                    self._make_room(self._below)
                    self._below[sequences] = self._states_below(self._body, sequences)
                return self._body.hidden(sequences, adapter, self._below[sequences])
            with self.switched_to(role):
                return self._transformers_hidden(sequences)

    def _states_below(self, body: llama.Body, sequences: Sequences) -> Tensor:
        """`Body.below`, put together from what is remembered if that holds all of the sequences."""
        if not all(pair in self._written for pair in sequences.pairs):
            return body.below(sequences)
        rows = [self._written[pair] for pair in sequences.pairs]
        return torch.cat([r[len(r) - new :] for r, new in zip(rows, sequences.own, strict=True)])

    @staticmethod
    def _make_room(kept: weakref.WeakKeyDictionary[Sequences, Tensor]) -> None:
        """Memory must not grow with the micro-batches of an update."""
        while len(kept) >= KEPT:
            del kept[next(iter(kept))]

    def _transformers_hidden(self, sequences: Sequences) -> Tensor:
        """The same states [M, H] through transformers, for any architecture."""
        ids = nn.utils.rnn.pad_sequence([sequences.ids[path] for path in sequences.paths], batch_first=True)
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            # Padding stands on the right, where no position before it looks: there is nothing to mask.
            out = self._causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
        of_each = zip(out, sequences.paths, sequences.own, strict=True)
        states = [row[len(path) - new : len(path)] for row, path, new in of_each]
        return torch.cat(states).index_select(0, sequences.places).float()

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [n, V] in float32 of hidden states [n, H]."""
        return hidden @ self._output.float().T

    # What they say of a batch -----------------------------------------------------------------------------------

    def evaluate(self, batch: LanguageBatch, grad: bool = False) -> PolicyTerms:
        """See `Networks.evaluate`."""
        sequences = batch.sequences
        reference, policy = self.hidden("reference", sequences), self.hidden("policy", sequences, grad)
        found = statistics(policy, self.head_weight, reference=reference, tokens=sequences.tokens)
        return PolicyTerms(self._compared(batch, batch.spread(found.log_prob)), batch.spread(found.kl))

    def log_prob(self, batch: LanguageBatch, role: str, grad: bool = False) -> Tensor:
        """See `Networks.log_prob`."""
        hidden = self.hidden(role, batch.sequences, grad)
        found = batch.spread(statistics(hidden, self.head_weight, tokens=batch.sequences.tokens).log_prob)
        return self._compared(batch, found) if role == "policy" else found

    def terms(self, batch: LanguageBatch, beta: float, policy: Literal["trained", "fixed", "critic"]) -> Terms:
        """See `Networks.terms`."""
        sequences, weight = batch.sequences, self.head_weight
        reference, critic = self.hidden("reference", sequences), self.hidden("critic", sequences, grad=True)
        if policy == "critic":
            found = own_dueling_terms(critic, reference, weight, sequences.tokens, beta)
        else:
            of_policy = self.hidden("policy", sequences, grad=policy == "trained")
            found = dueling_terms(of_policy, reference, critic, weight, sequences.tokens, beta)
        terms = Terms(*(batch.spread(values) for values in found))
        self._compared(batch, terms.log_prob)
        return terms

    def _compared(self, batch: LanguageBatch, log_prob: Tensor) -> Tensor:
        """Takes log π [B, T] into `gap` where the policy is still the one that drew the tokens; returns it."""
        for t, row in zip(batch.transitions, log_prob, strict=True):
            if (t.prompt, t.action) in self._unchecked:
                self._unchecked.remove((t.prompt, t.action))
                self.gap.add(row[: len(t.action)], t.log_probs)
        return log_prob

    def map_logits(
        self,
        batch: LanguageBatch,
        function: Callable[[dict[str, Tensor], Tensor], Sequence[Tensor]],
        roles: Sequence[str],
        learner: str | None = None,
    ) -> tuple[Tensor, ...]:
        """See `Networks.map_logits`; the logits exist for a few positions at a time."""
        first = learner or roles[0]
        others = [role for role in roles if role != first]
        hidden = [self.hidden(role, batch.sequences, grad=role == learner) for role in (first, *others)]

        def of_states(*states_and_tokens: Tensor) -> Sequence[Tensor]:
            *states, tokens = states_and_tokens
            return function({r: self.logits(h) for r, h in zip((first, *others), states, strict=True)}, tokens)

        return tuple(batch.spread(values) for values in streamed(of_states, *hidden, batch.sequences.tokens))

    def features(self, batch: LanguageBatch, role: str = "reference", grad: bool = False) -> Tensor:
        """See `Networks.features`: hidden states over sqrt(H).

        The scale lets one optimiser step of a value head move the value by about its learning rate times sqrt(H),
        whatever the width H of the model.
        """
        hidden = self.hidden(role, batch.sequences, grad)
        return batch.spread(hidden * hidden.shape[-1] ** -0.5)

    def value(self, features: Tensor) -> Tensor:
        """See `Networks.value`."""
        return self.value_head(features).squeeze(-1)

    # Learning ---------------------------------------------------------------------------------------------------

    def adamw(self, rates: Mapping[str, float]) -> torch.optim.Optimizer:
        """See `Networks.adamw`."""
        parts = {**self._parameters, "value": list(self.value_head.parameters())}
        groups = [{"params": parts[name], "lr": rate} for name, rate in rates.items()]
        return torch.optim.AdamW(groups, betas=(self.momentum, 0.999), weight_decay=0.0)

    def step(self, optimiser: torch.optim.Optimizer) -> float:
        """See `Networks.step`."""
        self._unchecked.clear()
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        distributed.sum_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.grad_norm)
        optimiser.step()
        optimiser.zero_grad()
        return float(norm)

    @torch.no_grad()
    def polyak_update(self, source: str, target: str, tau: float) -> None:
        """See `Networks.polyak_update`."""
        for new, old in zip(self._parameters[source], self._parameters[target], strict=True):
            old.mul_(tau).add_(new, alpha=1.0 - tau)

    def get_state(self) -> dict[str, Any]:
        """Adapters and value head, for a checkpoint."""
        if not self.trainable:
            return {}
        return {
            "adapters": {a: [p.detach().clone() for p in ps] for a, ps in self._parameters.items()},
            "value_head": {k: v.clone() for k, v in self.value_head.state_dict().items()},
            "gap": self.gap.get_state(),
        }

    @torch.no_grad()
    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        for adapter, values in state.get("adapters", {}).items():
            for parameter, value in zip(self._parameters[adapter], values, strict=True):
                parameter.copy_(value)
        if self.trainable:
            self.value_head.load_state_dict(state["value_head"])
        if "gap" in state:  # checkpoints of earlier versions have none
            self.gap.set_state(state["gap"])
