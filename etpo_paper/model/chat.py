"""A chat model behind an OpenAI-compatible endpoint as an agent: the baseline "Reflection (GPT-4)".

The other agents continue a Python file; a chat model is asked to. `ChatAgent.generate` sends each state as a user
message under one system message that asks for the body of `build_model` and nothing else, and `extract_body` takes
the body out of whatever comes back: a fenced block, the whole function, wrong indentation. The endpoint and the key
come from the environment (OPENAI_BASE_URL, OPENAI_API_KEY), so any server that speaks the protocol will do.
"""

import ast
import os
import re
import textwrap
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import openai
import torch

from etpo_core.errors import UserError
from etpo_paper.environment.prompts import Action, Prompt

SYSTEM = (
    "You complete a Python file that trains a scikit-learn classifier. The user sends the file with a gap where the "
    "body of the last function belongs. Answer with the lines that fill the gap and with nothing else: no "
    "explanation, no signature, no return statement. Indent them by four spaces, import what you need inside the "
    "function, and leave the fitted classifier in a variable called model."
)
GAP = "    # (the gap)\n"

_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each retry of a busy or failing server
_CONNECTION_RETRIES = 2  # a server that cannot be reached is not waited for any longer
_LONGEST_PAUSE = 60.0
_AT_ONCE = 8  # requests in flight


class ChatAgent:
    """Writes actions by asking a chat model.

    Args:
        model: name of the model at the endpoint.
        base_url: of the endpoint; None takes OPENAI_BASE_URL, or OpenAI's own.
        api_key: None takes OPENAI_API_KEY.

    Attributes:
        prompt_tokens: tokens sent so far, as the server counted them (0 if it does not say).
        completion_tokens: tokens received so far.
        action_tokens: tokens of each answer of the last `generate`, in order.

    Raises:
        UserError: when there is no key.
    """

    def __init__(self, model: str = "gpt-4", base_url: str | None = None, api_key: str | None = None):
        """Prepares the client; nothing is sent yet."""
        self.model = model
        api_key = api_key or os.environ.get("OPENAI_API_KEY")
        if not api_key:
            raise UserError(f"no key for the chat model {model}: set OPENAI_API_KEY (and OPENAI_BASE_URL)")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        try:
            # Retries are ours: the client would wait for an unreachable server as long as for a busy one.
            timeout = openai.Timeout(120.0, connect=10.0)
            self._client = openai.OpenAI(api_key=api_key, base_url=base_url, max_retries=0, timeout=timeout)
        except (openai.OpenAIError, ValueError) as error:
            raise UserError(f"the chat endpoint is no address ({_line(error)}); check OPENAI_BASE_URL") from None
        self._limit = "max_tokens"
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.action_tokens: list[int] = []

    @classmethod
    def from_environment(cls, model: str = "gpt-4") -> "ChatAgent | None":
        """The agent that the environment describes, or None without a key."""
        return cls(model) if os.environ.get("OPENAI_API_KEY") else None

    @property
    def endpoint(self) -> str:
        """Address of the server, without any password in it."""
        return re.sub(r"//[^/@]*@", "//", str(self._client.base_url)).rstrip("/")

    def generate(
        self,
        prompts: Sequence[Prompt],
        temperature: float = 1.0,
        max_new_tokens: int = 256,
        seed: int = 0,
        ended: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Asks for one action a prompt.

        Args:
            prompts: states.
            temperature: of the server's sampling.
            max_new_tokens: longest answer in tokens.
            seed: sent along as seed, seed + 1, ...; servers that know it repeat themselves, if not exactly.
            ended: called in this thread with each body, in order, as soon as it and those before it are there.

        Returns:
            Bodies of `build_model`, indented by four spaces, in the order of the prompts; "" for an empty answer.

        Raises:
            UserError: when the server cannot be reached, refuses, or does not speak the protocol.
        """

        def ask(indexed: tuple[int, Prompt]) -> tuple[str, int, int]:
            index, prompt = indexed
            return self._ask(prompt, temperature, max_new_tokens, seed + index)

        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            answers, bodies = [], []
            for answer in pool.map(ask, enumerate(prompts)):
                answers.append(answer)
                bodies.append(extract_body(answer[0]))
                if ended is not None:
                    ended(bodies[-1])
        self.prompt_tokens += sum(sent for _, sent, _ in answers)
        self.completion_tokens += sum(received for _, _, received in answers)
        self.action_tokens = [received for _, _, received in answers]
        return bodies

    @property
    def card(self) -> dict:
        """What the run card says of the model: a name at an endpoint has no weights to identify it by."""
        return {"name": self.model, "source": self.endpoint, "stand_in": None, "sha256": None}

    def get_state(self) -> dict:
        """A model behind an endpoint has none."""
        return {}

    def set_state(self, state: dict) -> None:
        """See `get_state`."""

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """A model behind an endpoint has no token ids."""
        return ()

    def act(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        generator: torch.Generator,
        temperature: float,
        top_k: int,
        ended: Callable[[str], None] | None = None,
    ) -> list[Action]:
        """One `Action` for each state; `top_k` is not part of the protocol and is not sent.

        `generator` gives the seed of the requests, a new one each time, so that a resumed run goes on asking anew.
        """
        seed = int(torch.randint(2**31, (), generator=generator))
        bodies = self.generate(prompts, temperature, max_new_tokens, seed, ended)
        return [Action(body, count) for body, count in zip(bodies, self.action_tokens, strict=True)]

    def _ask(self, prompt: Prompt, temperature: float, max_new_tokens: int, seed: int) -> tuple[str, int, int]:
        """(answer, tokens sent, tokens received)."""
        failures = 0
        while True:
            limit = self._limit  # another thread may learn the other name meanwhile
            try:
                answer = self._client.chat.completions.create(
                    model=self.model,
                    messages=[
                        {"role": "system", "content": SYSTEM},
                        {"role": "user", "content": prompt.prefix + GAP + prompt.suffix},
                    ],
                    temperature=temperature,
                    seed=seed,
                    **{limit: max_new_tokens},
                )
                break
            except openai.APIError as error:
                if getattr(error, "param", None) == limit == "max_tokens":
                    self._limit = "max_completion_tokens"  # what newer models call the same thing
                    continue
                failures += 1
                pause = self._pause(error, failures)
                if pause is None:
                    raise self._refusal(error) from None
                time.sleep(pause)
            except ValueError as error:  # a body that is no JSON
                raise self._refusal(error) from None
        try:
            text, usage = answer.choices[0].message.content, answer.usage
            sent = int(usage.prompt_tokens or 0) if usage else 0
            received = int(usage.completion_tokens or 0) if usage else 0
            if not isinstance(text, str | None):
                raise TypeError
        except (AttributeError, IndexError, TypeError, ValueError):
            raise self._refusal(None) from None
        return text or "", sent, received

    @staticmethod
    def _pause(error: openai.APIError, failures: int) -> float | None:
        """Seconds to wait before the next try, or None when there is no point in one."""
        if isinstance(error, openai.APIConnectionError):
            return _PAUSES[failures - 1] if failures <= _CONNECTION_RETRIES else None
        busy = isinstance(error, openai.APIStatusError) and (
            error.status_code in (408, 409, 429) or error.status_code >= 500
        )
        if not busy or failures > len(_PAUSES) or getattr(error, "code", None) == "insufficient_quota":
            return None
        try:
            return min(max(float(error.response.headers["retry-after"]), 0.0), _LONGEST_PAUSE)
        except (KeyError, ValueError):
            return _PAUSES[failures - 1]

    def _refusal(self, error: Exception | None) -> UserError:
        where = f"chat endpoint {self.endpoint}"
        match error:
            case openai.APITimeoutError():
                return UserError(f"{where} does not answer in time; check OPENAI_BASE_URL or try again later")
            case openai.APIConnectionError():
                return UserError(f"{where} cannot be reached; check OPENAI_BASE_URL and the network")
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return UserError(f"{where} refuses the key ({error.status_code}); check OPENAI_API_KEY")
            case openai.NotFoundError():
                return UserError(f"{where} has no model {self.model} (404); check the name and OPENAI_BASE_URL")
            case openai.RateLimitError():
                return UserError(f"{where} takes no more requests (429: {_line(error)}); try again later")
            case openai.APIStatusError():
                return UserError(f"{where} answers {error.status_code} ({_line(error)}); see that server's log")
        return UserError(f"{where} answers with something else than a chat completion; check OPENAI_BASE_URL")


def _line(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", error)).split())[:160]


# From an answer to a body ------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*\n(.*?)(?:^[ \t]*(?:```|~~~)[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_HEAD = re.compile(r"^[ \t]*def build_model\b", re.MULTILINE)
_SIGNATURE = re.compile(r"^([ \t]*)def build_model\b.*?:[ \t]*(?:#[^\n]*)?$", re.DOTALL | re.MULTILINE)


def extract_body(answer: str) -> str:
    """The body of `build_model` in a chat model's answer, indented by four spaces.

    Handles fenced blocks (the one that holds the function, or else the longest), a whole file or function (what
    stands above the function moves into the body, what stands below is dropped), tabs, and any indentation. What is
    no Python stays as it is: the environment then reports the error, and the model may reflect on it.

    Args:
        answer: the text of the answer.

    Returns:
        The body, ending in a newline; "" if there is none.
    """
    text = answer.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    blocks = _FENCE.findall(text)
    if blocks:
        text = next((block for block in blocks if _HEAD.search(block)), max(blocks, key=len))
    text = _dedent(text)
    if _HEAD.search(text):
        text = _function_body(text)
    text = _without_return(_dedent(text)).strip("\n")
    return textwrap.indent(text, "    ") + "\n" if text.strip() else ""


def _function_body(text: str) -> str:
    """What `build_model` does, for a text that defines it; the text itself if it is no Python at all."""
    try:
        module = ast.parse(text)
        function = next(node for node in module.body if getattr(node, "name", None) == "build_model")
    except (SyntaxError, ValueError, StopIteration):
        # Cut short or broken: the lines below the signature, as long as they are indented deeper.
        signature = _SIGNATURE.search(text)
        if signature is None:
            return text
        above, depth = text[: signature.start()], len(signature.group(1))
        lines = text[signature.end() :].strip("\n").split("\n")
        end = next(
            (i for i, line in enumerate(lines) if line.strip() and len(line) - len(line.lstrip()) <= depth), len(lines)
        )
        imports = [line for line in above.split("\n") if re.match(r"(?:import|from) ", line)]
        return "\n".join([*imports, _dedent("\n".join(lines[:end]))])
    lines = text.split("\n")
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    above = module.body[1:] if ast.get_docstring(module) is not None else module.body
    parts = [
        "\n".join(lines[_first_line(node) - 1 : node.end_lineno]) for node in above if node.lineno < function.lineno
    ]
    if body:
        inner = lines[_first_line(body[0]) - 1 : body[-1].end_lineno]
        if body[0].lineno == function.lineno:  # def build_model(...): model = ...
            inner[0] = " " * body[0].col_offset + lines[body[0].lineno - 1][body[0].col_offset :]
        parts.append(_dedent("\n".join(inner)))
    return "\n".join(parts)


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _without_return(text: str) -> str:
    """Drops a closing `return model`, which the environment adds itself."""
    return re.sub(r"\n*^return[ \t]+model[ \t]*(?:#[^\n]*)?\s*\Z", "", text, flags=re.MULTILINE)


def _dedent(text: str) -> str:
    """The text with its outermost lines in column 0, also when only its first line has lost its indentation.

    A model that continues behind four spaces of the prompt leaves them out in its first line and only there.
    """
    lines = [line.rstrip() if not line.strip() else line for line in text.strip("\n").split("\n")]
    plain = textwrap.dedent("\n".join(lines))
    if _parses(plain):
        return plain
    shifted = lines[0].lstrip() + "\n" + textwrap.dedent("\n".join(lines[1:]))
    return shifted if _parses(shifted) else plain


def _parses(text: str) -> bool:
    try:
        ast.parse("def body():\n" + textwrap.indent(text, "    ") + "\n    pass\n")
    except (SyntaxError, ValueError, RecursionError):
        return False
    return True
