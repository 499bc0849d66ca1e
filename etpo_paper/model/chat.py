"""A chat model behind an OpenAI-compatible endpoint as an agent: the baseline "Reflection (GPT-4)".

The other agents continue a Python file. A chat model is asked to: `ChatAgent.generate` sends each state as a user
message, under a system message that asks for the body of `build_model` and nothing else, and `extract_body` finds the
body in the answer, whether it is a fenced block, a whole function or wrongly indented. Key and endpoint come from the
environment (OPENAI_API_KEY, OPENAI_BASE_URL), so any server that speaks the protocol will do. The `openai` client
repeats requests that failed; what it gives up on is told to the user in one line, with the server's own words.
"""

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import torch

from etpo_core.errors import UserError
from etpo_paper.environment.prompts import Action, Prompt
from etpo_paper.model.answers import extract_body

SYSTEM = (
    "You complete a Python file that trains a scikit-learn classifier. The user sends the file with a gap where the "
    "body of the last function belongs. Answer with the lines that fill the gap and with nothing else: no "
    "explanation, no signature, no return statement. Indent them by four spaces, import what you need inside the "
    "function, and leave the fitted classifier in a variable called model."
)
GAP = "    # (the gap)\n"

# How often the client repeats a request when the server is busy, fails or cannot be reached. It waits 0.5, 1, 2, 4 and
# 8 seconds, somewhat less at random, or as long as the server asks for.
RETRIES = 5
TIMEOUT = 120.0  # seconds until a request without an answer is tried again; the client's own limit is ten minutes
AT_ONCE = 8  # requests in flight


class ChatAgent:
    """An agent that writes actions by asking a chat model. It cannot be trained.

    Args:
        model: name of the model at the endpoint.
        base_url: address of the endpoint; None for OPENAI_BASE_URL, or else OpenAI's own.
        api_key: None for OPENAI_API_KEY.

    Attributes:
        prompt_tokens: tokens sent so far, as the server counts them; 0 if it does not.
        completion_tokens: tokens received so far, likewise.
        action_tokens: tokens of each answer of the last `generate`, in order, likewise.

    Raises:
        UserError: there is no key, or the address is not one of a web server.
    """

    def __init__(self, model: str = "gpt-4", base_url: str | None = None, api_key: str | None = None):
        """Checks key and address; nothing is sent yet."""
        self.model = model
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key:
            raise UserError(f"no key for the chat model {model}: set OPENAI_API_KEY (and OPENAI_BASE_URL)")
        self._key = key
        self._base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        try:
            address = str(self._client().base_url)
            if re.match(r"https?://[^/]", address) is None:
                raise ValueError("expected http:// or https:// and a host")
        except (openai.OpenAIError, ValueError) as error:
            line = " ".join(str(error).split())
            raise UserError(f"the address of the chat endpoint is wrong ({line}); check OPENAI_BASE_URL") from None
        self.endpoint = re.sub(r"//[^/@]*@", "//", address).rstrip("/")  # without a password
        self._limit = "max_tokens"
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.action_tokens: list[int] = []

    @classmethod
    def from_environment(cls, model: str = "gpt-4") -> "ChatAgent | None":
        """The agent that the environment describes, or None without a key."""
        return cls(model) if os.environ.get("OPENAI_API_KEY") else None

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(api_key=self._key, base_url=self._base_url, max_retries=RETRIES, timeout=TIMEOUT)

    def generate(
        self,
        prompts: Sequence[Prompt],
        temperature: float = 1.0,
        max_new_tokens: int = 256,
        seed: int = 0,
        ended: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Asks for one action for each prompt.

        Args:
            prompts: states.
            temperature: of the server's sampling.
            max_new_tokens: length limit of an answer, in tokens.
            seed: the requests carry the seeds seed, seed + 1, ...; with the same seed, a server that supports seeds
                mostly gives the same answer.
            ended: called with each body, in the order of the prompts, as soon as it and those before it are there.

        Returns:
            Bodies of `build_model`, indented by four spaces, in the order of the prompts; "" for an empty answer.

        Raises:
            UserError: the server cannot be reached, refuses, or does not speak the protocol.
        """
        bodies: list[str] = []
        self.action_tokens = []

        async def ask_all() -> None:
            slots = asyncio.Semaphore(AT_ONCE)

            async def ask(prompt: Prompt, seed: int) -> tuple[str, int, int]:
                async with slots:
                    return await self._ask(client, prompt, temperature, max_new_tokens, seed)

            async with self._client() as client:
                asked = [asyncio.create_task(ask(prompt, seed + i)) for i, prompt in enumerate(prompts)]
                try:
                    for task in asked:
                        text, sent, received = await task
                        self.prompt_tokens += sent
                        self.completion_tokens += received
                        self.action_tokens.append(received)
                        bodies.append(extract_body(text))
                        if ended is not None:
                            ended(bodies[-1])
                finally:  # after an error or Ctrl-C no answer is waited for
                    for task in asked:
                        task.cancel()
                    await asyncio.gather(*asked, return_exceptions=True)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(ask_all())
        else:  # a notebook has a loop of its own, in which no other can run
            with ThreadPoolExecutor(1) as other:
                other.submit(asyncio.run, ask_all()).result()
        return bodies

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """No token ids: those of a model behind an endpoint are not known."""
        return ()

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """No text for any token, see `encode`."""
        return ["" for _ in tokens]

    def refresh(self) -> None:
        """Does nothing, because the model does not change."""

    def get_state(self) -> dict[str, Any]:
        """Nothing: the model is stored behind its endpoint."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing, see `get_state`."""

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
        """One `Action` for each state, see `generate`.

        The protocol has no `top_k`, so it is not sent. The seed of the requests is drawn from `generator`, whose state
        is part of a checkpoint, so a resumed run does not ask for the answers that it already has.
        """
        seed = int(torch.randint(2**31, (), generator=generator))
        bodies = self.generate(prompts, temperature, max_new_tokens, seed, ended)
        return [Action(body, count) for body, count in zip(bodies, self.action_tokens, strict=True)]

    async def _ask(
        self, client: openai.AsyncOpenAI, prompt: Prompt, temperature: float, max_new_tokens: int, seed: int
    ) -> tuple[str, int, int]:
        """The text of the answer, and how many tokens were sent and received."""
        limit = self._limit  # another request may learn the newer name meanwhile
        try:
            answer = await client.chat.completions.create(
                model=self.model,
                messages=[
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": prompt.prefix + GAP + prompt.suffix},
                ],
                temperature=temperature,
                seed=seed,
                extra_body={limit: max_new_tokens},
            )
        except openai.APIError as error:
            if limit == "max_tokens" and (error.param == limit or "max_completion_tokens" in error.message):
                self._limit = "max_completion_tokens"  # newer models call it so
                return await self._ask(client, prompt, temperature, max_new_tokens, seed)
            raise self._refusal(error) from None
        except ValueError:  # a body that is no JSON
            raise self._refusal(None) from None
        try:
            text, usage = answer.choices[0].message.content, answer.usage
            sent = int(usage.prompt_tokens or 0) if usage else 0
            received = int(usage.completion_tokens or 0) if usage else 0
            if not isinstance(text, str | None):
                raise TypeError
        except (AttributeError, IndexError, TypeError, ValueError):
            raise self._refusal(getattr(answer, "error", None)) from None
        return text or "", sent, received

    def _refusal(self, error: Any) -> UserError:
        """What the user is told of an error of the client, of an `error` in an answer, or of an answer that is none."""
        where = f"chat endpoint {self.endpoint}"
        if isinstance(error, openai.APITimeoutError):
            return UserError(f"{where} does not answer in time; check OPENAI_BASE_URL or try again later")
        if isinstance(error, openai.APIConnectionError):
            return UserError(f"{where} cannot be reached; check OPENAI_BASE_URL and the network")
        words = _words(getattr(error, "body", error))
        words = re.sub(rf"(?<!\w){re.escape(self._key)}(?!\w)", "***", words)[:200]
        match error:
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return UserError(f"{where} refuses the key ({error.status_code}: {words}); check OPENAI_API_KEY")
            case openai.NotFoundError():
                return UserError(
                    f"{where} has no model {self.model} (404: {words}); check the name and OPENAI_BASE_URL"
                )
            case openai.RateLimitError():
                return UserError(f"{where} takes no more requests (429: {words}); try again later")
            case openai.APIStatusError():
                return UserError(f"{where} answers {error.status_code} ({words}); see that server's log")
            case dict() | str():
                return UserError(f"{where} answers with an error ({words}); see that server's log")
        return UserError(f"{where} answers with something else than a chat completion; check OPENAI_BASE_URL")


def _words(said: Any) -> str:
    """The message in the body of an error, on one line. Servers wrap it in different ways."""
    match said:
        case {"message": inner} | {"error": inner} | {"detail": inner} | [inner, *_] if inner:
            return _words(inner)
    return " ".join(str(said or "no message").split())
