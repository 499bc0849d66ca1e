"""A chat model behind an OpenAI-compatible endpoint as an agent: the baseline "Reflection (GPT-4)".

The other agents continue a Python file. A chat model is asked to: `ChatAgent.generate` sends each state as a user
message, under a system message that asks for the body of `build_model` and nothing else, and `answers` finds the code
in what comes back. Key and endpoint come from the environment (OPENAI_API_KEY, OPENAI_BASE_URL), so any server that
speaks the protocol will do.

The `openai` client repeats requests that failed, after the time that the server asks for (Retry-After in seconds or as
a date, retry-after-ms) or else after 0.5, 1, 2, 4 and then 8 seconds, somewhat less at random. A field that the server
names in refusing a request, and that an answer can be had without, is left out or renamed from then on. What is given
up on is told to the user in one line, with the server's own words.
"""

import asyncio
import copy
import os
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import openai
import torch

from etpo_core.errors import UserError
from etpo_paper.environment.prompts import Action, Prompt
from etpo_paper.model.answers import SYSTEM, extract_body, question

# What a server may refuse, as it may call it. The limit is then sent as max_completion_tokens, as newer models call it,
# what the system message says goes in front of the user's, and the others are left out.
OPTIONAL = {
    "seed": re.compile(r"\bseed\b"),
    "temperature": re.compile(r"\btemperature\b"),
    "max_tokens": re.compile(r"\bmax_(?:completion_)?tokens\b"),
    "system": re.compile(
        r"\bsystem\b.{0,20}\b(?:role|message|prompt|instruction)|\brole\b.{0,30}\bsystem\b"
        r"|\broles must alternate\b|\bdeveloper instruction",
        re.IGNORECASE,
    ),
}


class Answer(NamedTuple):
    """An answer of the endpoint.

    Attributes:
        text: its content; "" if there is none.
        reason: why it ended, e.g. "stop" or "length"; "refusal" if the model refuses, "unknown" if nobody says.
        sent: tokens of the request as the server counts them; None if it does not.
        received: tokens of the answer, likewise.
    """

    text: str
    reason: str
    sent: int | None = None
    received: int | None = None


class ChatAgent:
    """An agent that writes actions by asking a chat model. It cannot be trained.

    Args:
        model: name of the model at the endpoint.
        base_url: address of the endpoint; None for OPENAI_BASE_URL, or else OpenAI's own.
        api_key: None for OPENAI_API_KEY.
        wait_seconds: how long an answer is waited for, and then asked for again.
        at_once: requests in flight.
        retries: how often a request is repeated when the server is busy, fails or cannot be reached.

    Attributes:
        endpoint: address of the endpoint without user, password and query.
        refused: those fields of `OPTIONAL` that the server has refused.
        action_tokens: tokens of each answer of the last `generate`, in order; None where the server does not count.
        reasons: why each of these answers ended, see `Answer`.
        counts: of all answers so far: "prompt_tokens" and "completion_tokens", None as soon as one was not counted;
            "answers" and "empty", the number of all and of those without code by the reason why they ended.

    Raises:
        UserError: there is no key, or the address is not one of a web server.
    """

    def __init__(
        self,
        model: str = "gpt-4",
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        wait_seconds: float = 120,
        at_once: int = 8,
        retries: int = 5,
    ):
        """Checks key and address; nothing is sent yet."""
        self.model, self.wait_seconds, self.at_once, self.retries = model, wait_seconds, at_once, retries
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
        parts = urlsplit(address)
        self.endpoint = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        self.refused: list[str] = []
        self.action_tokens: list[int | None] = []
        self.reasons: list[str] = []
        self.counts: dict[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0, "answers": {}, "empty": {}}
        self._rounds = 0

    @classmethod
    def from_environment(cls, model: str = "gpt-4", **patience: Any) -> "ChatAgent | None":
        """The agent that the environment describes, or None without a key."""
        return cls(model, **patience) if os.environ.get("OPENAI_API_KEY") else None

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=self._key,
            base_url=self._base_url,
            max_retries=self.retries,
            timeout=self.wait_seconds,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [_as_it_is_meant]}),
        )

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
            Actions, see `answers`, in the order of the prompts; "" for an empty answer.

        Raises:
            UserError: the server cannot be reached, refuses, or does not speak the protocol.
        """
        bodies: list[str] = []
        self.action_tokens, self.reasons = [], []

        async def ask_all() -> None:
            slots = asyncio.Semaphore(self.at_once)

            async def ask(prompt: Prompt, seed: int) -> Answer:
                async with slots:
                    return await self._ask(client, prompt, temperature, max_new_tokens, seed)

            async with self._client() as client:
                asked = [asyncio.create_task(ask(prompt, seed + i)) for i, prompt in enumerate(prompts)]
                try:
                    for task in asked:
                        answer = await task
                        bodies.append(extract_body(answer.text))
                        self._count(answer, bodies[-1])
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

    def _count(self, answer: Answer, body: str) -> None:
        self.action_tokens.append(answer.received)
        self.reasons.append(answer.reason)
        for name, more in (("prompt_tokens", answer.sent), ("completion_tokens", answer.received)):
            before = self.counts[name]
            self.counts[name] = None if before is None or more is None else before + more
        for name in ("answers",) if body else ("answers", "empty"):
            self.counts[name][answer.reason] = self.counts[name].get(answer.reason, 0) + 1

    def check_answers(self) -> None:
        """Stops a run that would learn nothing of the model.

        Raises:
            UserError: none of the answers so far holds any code.
        """
        if self.counts["answers"] and self.counts["answers"] == self.counts["empty"]:
            raise UserError(
                f"chat endpoint {self.endpoint}: all answers of {self.model} are empty ({self.empty_answers()}); "
                "if they end by length, raise training.max_new_tokens: a model's thoughts count as well"
            )

    def empty_answers(self) -> str:
        """How many answers held no code, by the reason why they ended; "" if all did."""
        return ", ".join(f"finish reason {reason}: {count}" for reason, count in sorted(self.counts["empty"].items()))

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """No token ids: those of a model behind an endpoint are not known."""
        return ()

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """No text for any token, see `encode`."""
        return ["" for _ in tokens]

    def refresh(self) -> None:
        """Does nothing, because the model does not change."""

    def get_state(self) -> dict[str, Any]:
        """What was counted so far; the model is stored behind its endpoint."""
        return {"counts": copy.deepcopy(self.counts), "rounds": self._rounds}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        self.counts, self._rounds = copy.deepcopy(state["counts"]), state["rounds"]

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
        self._rounds += 1
        if self._rounds > 1:
            self.check_answers()
        answers = zip(bodies, self.action_tokens, self.reasons, strict=True)
        return [Action(body, count, finished=reason != "length") for body, count, reason in answers]

    async def _ask(
        self, client: openai.AsyncOpenAI, prompt: Prompt, temperature: float, max_new_tokens: int, seed: int
    ) -> Answer:
        refused = set(self.refused)  # another request may learn more meanwhile
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question(prompt)},
        ]
        if "system" in refused:
            messages = [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]
        fields = {"temperature": temperature, "seed": seed, "max_tokens": max_new_tokens}
        fields = {name: value for name, value in fields.items() if name not in refused}
        fields.setdefault("max_tokens" if "max_tokens" in fields else "max_completion_tokens", max_new_tokens)
        try:
            create: Any = client.chat.completions.create
            answer = await create(model=self.model, messages=messages, extra_body=fields)
        except openai.APIError as error:
            if error.code == "content_filter":  # of this prompt alone
                return Answer("", "content_filter")
            named = _named(error, OPTIONAL.keys() - refused)
            if named is None:
                raise self._refusal(error) from None
            if named not in self.refused:
                self.refused.append(named)
            return await self._ask(client, prompt, temperature, max_new_tokens, seed)
        except ValueError:  # a body that is no JSON
            raise self._refusal(None) from None
        try:
            return _read(answer)
        except (AttributeError, IndexError, TypeError, ValueError):
            raise self._refusal(_error_in(answer)) from None

    def _refusal(self, error: Any) -> UserError:
        """What the user is told of an error of the client, of an `error` in an answer, or of an answer that is none."""
        where = f"chat endpoint {self.endpoint}"
        if isinstance(error, openai.APITimeoutError):
            return UserError(
                f"{where} does not answer within {self.wait_seconds:g} s, with {self.at_once} requests at once and "
                f"{self.retries} retries; raise chat.wait_seconds or lower chat.at_once in params.yaml"
            )
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
                return UserError(
                    f"{where} takes no more requests (429: {words}); try later or raise chat.retries in params.yaml"
                )
            case openai.APIStatusError():
                return UserError(f"{where} answers {error.status_code} ({words}); see that server's log")
            case dict() | str():
                return UserError(f"{where} answers with an error ({words}); see that server's log")
        return UserError(f"{where} answers with something else than a chat completion; check OPENAI_BASE_URL")


async def _as_it_is_meant(response: Any) -> None:
    """Gives an error that came with status 200 the status that it names, so that the client does as it says."""
    if response.status_code != 200:
        return
    await response.aread()
    try:
        code = int(_error_in(response.json())["code"])
    except (ValueError, TypeError, KeyError):
        return
    if 400 <= code < 600:
        response.status_code = code


def _error_in(answer: Any) -> Any:
    """The field `error` of an answer, or of the first in a list."""
    answer = answer[0] if isinstance(answer, list) and answer else answer
    return answer.get("error") if isinstance(answer, dict) else getattr(answer, "error", None)


def _named(error: openai.APIError, names: Collection[str]) -> str | None:
    """The field that a server names in refusing a request."""
    if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError | openai.InternalServerError):
        return None
    said = f"{error.param}: {_words(error.body or error.message)}"
    return next((name for name, pattern in OPTIONAL.items() if name in names and pattern.search(said)), None)


def _read(answer: Any) -> Answer:
    """What matters of a chat completion; raises an error of Python if it is none."""
    choice, usage = answer.choices[0], answer.usage
    content = choice.message.content
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] in ("text", "output_text"))
    if not isinstance(content, str | None):
        raise TypeError("content is neither text nor a list of parts")
    reason = "refusal" if getattr(choice.message, "refusal", None) else choice.finish_reason or "unknown"
    sent, received = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return Answer(
        content or "", str(reason), None if sent is None else int(sent), None if received is None else int(received)
    )


def _words(said: Any) -> str:
    """The message in the body of an error, on one line. Servers wrap it in different ways."""
    match said:
        case {"loc": [*_, field], "msg": inner}:
            return f"{field}: {_words(inner)}"
        case {"message": inner, "metadata": {"raw": str(raw)}}:
            return f"{_words(inner)}: {_words(raw)}"
        case {"message": inner} | {"error": inner} | {"detail": inner} | {"msg": inner} | [inner, *_] if inner:
            return _words(inner)
    return " ".join(str(said or "no message").split())
