"""The agent that writes programs: a language model's policy as a sampler of actions.

`Agent` ties together what acting needs: the tokenizer and the model's card, the networks whose policy acts
(`networks`), a decoder that holds a copy of the policy's weights, and guesses of what comes next (`drafts`), which make
sampling faster without changing what is sampled.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from etpo_core.errors import UserError
from etpo_paper.base import distributed
from etpo_paper.environment.prompts import Action, Prompt
from etpo_paper.model import llama
from etpo_paper.model.answers import extract_body
from etpo_paper.model.decoder import Decoder, LlamaDecoder, Sampled, TransformersDecoder, check_decoding, sample
from etpo_paper.model.drafts import Drafts
from etpo_paper.model.loading import CHAT, CODE, decode_action, encode_prompt, end_tokens
from etpo_paper.model.networks import LanguageModelNetworks
from etpo_paper.model.starts import write_adapter
from etpo_paper.model.stops import end_of_answer, end_of_body
from etpo_paper.model.trunk import Part, Passed, Trunk


class Agent:
    """A causal language model that acts in the text environment (see `rollout.Actor`).

    Args:
        model: the frozen base, as `loading.load_model` returns it.
        tokenizer: its tokenizer.
        card: its card: `format` of prompts, end tokens, and of a model of the user's own what `own` says there.
        forward: see `LlamaDecoder`.
        options: of its networks, see `LanguageModelNetworks`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        card: dict[str, Any],
        forward: Callable[[Trunk, Part], Passed] | None = None,
        **options: Any,
    ):
        self.tokenizer, self.card, self._forward = tokenizer, card, forward
        self.networks = LanguageModelNetworks(model, targets=card.get("lora_targets"), **options)
        self._end: Callable[[str], int | None] | None = None  # where a program ends without an end token
        if card.get("stops"):
            self._end = end_of_answer if card["format"] == CHAT else end_of_body
        self._decoder: Decoder | None = None
        self.drafts = Drafts()
        # A state is asked for when it is reached, when it is acted in and when its transition is kept.
        self._encode = lru_cache(maxsize=256)(
            lambda prompt: tuple(encode_prompt(self.tokenizer, prompt, self.card["format"]))
        )

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a state; those of the last states asked for are remembered."""
        return self._encode(prompt)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token of an action; an end token has none."""
        ends = end_tokens(self.card)
        return ["" if token in ends else self.tokenizer.decode([token]) for token in tokens]

    def refresh(self) -> None:
        """Hands the policy's current weights to the decoder; call it after every update."""
        networks = self.networks
        networks.forget()
        adapter = "policy" if networks.trainable else None
        if isinstance(self._decoder, LlamaDecoder):
            self._decoder.load(adapter)
        elif llama.fits(networks.model):
            self._decoder = LlamaDecoder(networks.model, networks.compute_dtype, adapter, networks.trunk, self._forward)
        else:
            if self._decoder is None:
                check_decoding(networks.model, self.tokenizer(CODE, add_special_tokens=False).input_ids)
            self._decoder = TransformersDecoder(networks.model)

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
        assert self._decoder is not None
        end = end_tokens(self.card)
        ids = [self.encode(p) for p in prompts]
        self._check_length(max(map(len, ids)), max_new_tokens)
        # The bare decoder has the policy's weights already; transformers computes with the adapter that is switched on.
        own = isinstance(self._decoder, LlamaDecoder)

        def body(s: Sampled) -> str:
            text = decode_action(self.tokenizer, s.tokens, end)
            text = text if self._end is None else text[: self._end(text)]
            return extract_body(text) if self._end is end_of_answer else text

        def stops(tokens: Sequence[int]) -> bool:
            return self._end is not None and self._end(decode_action(self.tokenizer, tokens, end)) is not None

        report = None if ended is None else lambda _, s: ended(body(s))
        with nullcontext() if own else self.networks.switched_to("policy"):
            sampled = sample(
                self._decoder,
                ids,
                end,
                max_new_tokens,
                generator,
                temperature,
                top_k,
                report,
                self.drafts,
                None if self._end is None else stops,
            )
        if isinstance(self._decoder, LlamaDecoder) and self.networks.trainable:
            for i, (prompt, s) in enumerate(zip(ids, sampled, strict=True)):
                below = self._decoder.states_below(i, len(prompt) + len(s.tokens) - 1)
                self.networks.remember(prompt, s.tokens, below)
        self.drafts.observe(distributed.merge([s.tokens for s in sampled]))
        return [Action(body(s), len(s.tokens), s.tokens, s.log_probs, s.finished) for s in sampled]

    def _check_length(self, prompt: int, action: int) -> None:
        """Looks whether a prompt and the longest action fit into what the model reads at once.

        Raises:
            UserError: they do not.
        """
        context = self.card.get("context")
        if context is not None and prompt + action > context:
            raise UserError(
                f"{self.card['name']} reads at most {context} tokens at once, and a prompt of {prompt} with a program "
                f"of up to {action} is longer; choose another model"
            )

    def get_state(self) -> dict[str, Any]:
        """Networks and what guesses are made from, for a checkpoint."""
        # Guesses change no action, but they decide which rows are computed together, and with that the last digits.
        return {"networks": self.networks.get_state(), "drafts": self.drafts.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        self.networks.set_state(state["networks"])
        self.drafts.set_state(state["drafts"])
        self.refresh()

    def save_policy(self, folder: Path) -> None:
        """Writes the policy's adapter in peft's format."""
        write_adapter(folder, self.networks.model, "policy", self.card["name"])
