"""The chat agent against a real HTTP server that speaks the protocol, well and badly."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from etpo_core.errors import UserError
from etpo_paper.base.settings import load_defaults
from etpo_paper.environment.prompts import Prompt, task_prompt
from etpo_paper.model.chat import ChatAgent

BODY = "    from sklearn.svm import SVC\n    model = SVC(probability=True).fit(x_train, y_train)\n"
PROMPT = task_prompt("Toy", features=3, rows=10)


class Server:
    """Answers POST /v1/chat/completions with what `script` says: a (status, headers, body) a request."""

    def __init__(self):
        self.requests: list[dict] = []
        self.script = lambda request: completion(BODY)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                request |= {"path": self.path, "authorization": self.headers["authorization"]}
                server.requests.append(request)
                status, headers, body = server.script(request)
                with contextlib.suppress(OSError):  # after an error the agent waits for no other answer
                    self.send_response(status)
                    for name, value in {"content-type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def says(self, *answers) -> None:
        """Gives these answers one after another, the last one for ever."""
        self.script = lambda request: answers[min(len(self.requests), len(answers)) - 1]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def completion(text, usage=(11, 7), reason="stop", **message):
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "toy",
        "choices": [
            {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text, **message}}
        ],
    }
    if isinstance(usage, tuple):
        usage = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    if usage is not None:
        body["usage"] = usage
    return 200, {}, json.dumps(body).encode()


SOON = {"retry-after-ms": "5"}  # lets the client repeat a request at once


def failure(status, message="no", headers=SOON, **fields):
    return status, headers, json.dumps({"error": {"message": message, **fields}}).encode()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)  # seconds; by itself half a second
    # The server speaks plain HTTP, and every client would read the certificates of all authorities twice.
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *arguments, **more: None)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def agent(server):
    return ChatAgent("toy", base_url=server.url, api_key="secret")


def total(agent):
    return agent.counts["prompt_tokens"], agent.counts["completion_tokens"]


def refusal(agent, prompts=(PROMPT,)) -> str:
    with pytest.raises(UserError) as error:
        agent.generate(prompts)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)
    return str(error.value)


def test_without_a_key_there_is_no_agent(monkeypatch):
    assert ChatAgent.from_environment() is None
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        ChatAgent()


def test_the_environment_names_key_and_endpoint(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    agent = ChatAgent.from_environment("gpt-4")
    assert agent.generate([PROMPT]) == [BODY]
    request = server.requests[0]
    assert request["path"] == "/v1/chat/completions" and request["authorization"] == "Bearer from-environment"
    assert request["model"] == "gpt-4" and agent.endpoint == server.url


def test_what_is_sent(agent, server):
    agent.generate([PROMPT], temperature=0.3, max_new_tokens=55, seed=9)
    (request,) = server.requests
    assert (request["temperature"], request["max_tokens"], request["seed"]) == (0.3, 55, 9)
    system, user = request["messages"]
    assert system["role"] == "system" and "body" in system["content"]
    assert user["content"].startswith(PROMPT.prefix) and user["content"].endswith(PROMPT.suffix)


def test_answers_keep_the_order_of_the_prompts_and_tokens_are_counted(agent, server):
    def answer(request):
        number = int(request["messages"][1]["content"].split("#")[1])
        time.sleep(0.02 * (3 - number % 4))
        return completion(f"    model = {number}\n", usage=(100, number))

    server.script = answer
    prompts = [Prompt(f"#{i}#") for i in range(10)]
    assert agent.generate(prompts, seed=5) == [f"    model = {i}\n" for i in range(10)]
    assert agent.action_tokens == list(range(10))
    assert total(agent) == (1000, 45)
    assert sorted(request["seed"] for request in server.requests) == list(range(5, 15))
    agent.generate([Prompt("#3#")])
    assert (total(agent), agent.action_tokens) == ((1100, 48), [3])


def test_bodies_are_told_while_others_are_still_being_asked_for(agent, server):
    told, asked = [], threading.Event()

    def answer(request):
        number = int(request["messages"][1]["content"].split("#")[1])
        if number == 1:
            assert asked.wait(10)  # until the first body has been told
        return completion(f"    model = {number}\n")

    def ended(body):
        told.append(body)
        asked.set()

    server.script, bodies = answer, ["    model = 0\n", "    model = 1\n"]
    assert agent.generate([Prompt("#0#"), Prompt("#1#")], ended=ended) == bodies == told


def test_it_acts_like_any_agent(agent, server):
    generator = torch.Generator().manual_seed(0)
    options = {"max_new_tokens": 5, "generator": generator, "temperature": 0.5, "top_k": 0}
    for _ in range(2):
        (action,) = agent.act([PROMPT], **options)
        assert (action.body, action.token_count, action.tokens, action.log_probs) == (BODY, 7, (), ())
        agent.refresh()
        agent.set_state(agent.get_state())
    first, second = (request["seed"] for request in server.requests)
    assert first != second, "a resumed run must not get the answers that it had"
    assert agent.encode(PROMPT) == () and agent.pieces(()) == []


def test_ctrl_c_waits_for_no_answer(agent, server):
    reached, release = threading.Event(), threading.Event()

    def answer(request):
        reached.set()
        release.wait(20)
        return completion(BODY)

    def interrupt():
        reached.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    server.script = answer
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    begin = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            agent.generate([PROMPT] * 3)
        assert time.monotonic() - begin < 10
    finally:
        signal.signal(signal.SIGINT, before)
        release.set()


def test_it_answers_in_a_notebook_too(agent):
    async def cell():  # a notebook runs its cells inside an event loop
        return agent.generate([PROMPT])

    assert asyncio.run(cell()) == [BODY]


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, (None, None)),
        ({"prompt_tokens": None}, (None, None)),
        ({"prompt_tokens": "3"}, (3, None)),
        ({}, (None, None)),
    ],
    ids=str,
)
def test_what_a_server_does_not_count_is_missing(agent, server, usage, tokens):
    server.says(completion(BODY), completion(BODY, usage=usage), completion(BODY))
    assert [agent.generate([PROMPT]) for _ in range(3)] == [[BODY]] * 3
    assert total(agent) == (None if tokens[0] is None else 25, None) and agent.action_tokens == [7]
    server.says(completion(BODY, usage=usage))
    (action,) = agent.act([PROMPT], max_new_tokens=5, generator=torch.Generator())
    assert action.token_count is None and agent.action_tokens == [None]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_told_at_once(agent, server, status):
    server.says(failure(status, "Incorrect API key provided: secret"))
    assert f"({status}: Incorrect API key provided: ***); check OPENAI_API_KEY" in refusal(agent)
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(agent, server):
    server.says(failure(429), failure(429, headers={"retry-after": "0.4"}), failure(500), completion(BODY))
    begin = time.monotonic()
    assert agent.generate([PROMPT]) == [BODY] and len(server.requests) == 4
    assert time.monotonic() - begin > 0.4


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_stays_busy_is_given_up(agent, server, status):
    server.says(failure(status, "come\nback later"))
    assert "come back later" in refusal(agent) and len(server.requests) == agent.retries + 1


def test_an_unknown_model_and_a_bad_request_are_told_at_once(agent, server):
    server.says(failure(404, "try qwen"))
    assert "no model toy (404: try qwen)" in refusal(agent)
    server.says(failure(400, "max context is 12 tokens"))
    assert "max context is 12 tokens" in refusal(agent) and len(server.requests) == 2


@pytest.mark.parametrize(
    "status, body, words",
    [
        (400, {"detail": "not loaded"}, "answers 400 (not loaded)"),
        (422, [{"error": {"message": "no seed"}}], "answers 422 (no seed)"),
        (400, {"error": "too long"}, "answers 400 (too long)"),
        (400, "plain", "answers 400 (plain)"),
        (400, "", "answers 400 (no message)"),
        (400, [{"error": {"code": 400, "message": "bad name"}}], "answers 400 (bad name)"),
        (422, {"detail": [{"loc": ["body", "n"], "msg": "field required"}]}, "answers 422 (n: field required)"),
        (402, {"error": {"message": "lower max_tokens", "code": 402}}, "answers 402 (lower max_tokens)"),
        (200, {"error": {"message": "no credits", "code": 402}}, "answers 402 (no credits)"),
        (200, {"error": {"message": "no", "code": "402", "metadata": {"raw": "no money"}}}, "402 (no: no money)"),
        (200, [{"error": {"message": "no list", "code": 404}}], "no model toy (404: no list)"),
        (200, {"error": "plain"}, "answers with an error (plain)"),
        (200, [{"error": {"message": "in a list"}}], "answers with an error (in a list)"),
    ],
    ids=str,
)
def test_an_error_is_told_in_the_servers_own_words_however_it_is_wrapped(agent, server, status, body, words):
    server.says((status, {}, json.dumps(body).encode()))
    assert words in refusal(agent)


def test_no_answer_is_waited_for_after_an_error(agent, server):
    release = threading.Event()

    def answer(request):
        if request["messages"][1]["content"].startswith("#0#"):
            return failure(400, "too long")
        release.wait(20)
        return completion(BODY)

    server.script = answer
    begin = time.monotonic()
    assert "too long" in refusal(agent, [Prompt("#0#"), Prompt("#1#"), Prompt("#2#")])
    assert time.monotonic() - begin < 10
    release.set()


def test_an_error_with_status_200_is_one_with_the_status_that_it_names(agent, server):
    status, headers, body = failure(200, "provider is down", code=502)
    server.says((status, headers, body), (status, headers, body), completion(BODY))
    assert agent.generate([PROMPT]) == [BODY] and len(server.requests) == 3


LIMIT = "max_completion_tokens"
REFUSALS = {
    "seed, in a list": (400, [{"error": {"message": 'Unknown name "seed": Cannot find field.'}}], {"seed"}),
    "seed, FastAPI": (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs", "input": 1}]}, {"seed"}),
    "temperature, by name": (400, {"error": {"message": "no", "param": "temperature"}}, {"temperature"}),
    "temperature, its value": (400, {"error": "'temperature' does not support 0.5, only 1"}, {"temperature"}),
    "limit, by name": (400, {"error": {"message": "no", "param": "max_tokens"}}, {"max_tokens"}),
    "limit, by its new name": (400, {"detail": f"use {LIMIT}"}, {"max_tokens"}),
    "system, Jinja": (400, {"message": "System role not supported"}, {"system"}),
    "system, by name": (400, {"error": {"message": "'messages[0].role' does not support 'system'"}}, {"system"}),
    "system, the order": (422, {"detail": "Conversation roles must alternate user/assistant"}, {"system"}),
    "system, Gemma": (400, [{"error": {"message": "Developer instruction is not enabled"}}], {"system"}),
}


def what_it_sends(request):
    fields = {"seed", "temperature", "max_tokens"} & request.keys()
    return fields | ({"system"} if request["messages"][0]["role"] == "system" else set())


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_field_that_is_refused_is_not_sent_again(agent, server, refusal):
    status, body, fields = refusal

    def answer(request):
        return (status, {}, json.dumps(body).encode()) if what_it_sends(request) & fields else completion(BODY)

    server.script = answer
    assert agent.generate([PROMPT] * 8, temperature=0.5, max_new_tokens=6) == [BODY] * 8
    assert agent.generate([PROMPT], temperature=0.5, max_new_tokens=6) == [BODY]
    last = server.requests[-1]
    assert what_it_sends(last) == {"seed", "temperature", "max_tokens", "system"} - fields
    assert set(agent.refused) == fields
    assert last.get(LIMIT) == (6 if fields == {"max_tokens"} else None)
    if fields == {"system"}:
        (message,) = last["messages"]
        assert message["role"] == "user" and message["content"].endswith(PROMPT.suffix)
        assert message["content"].startswith("You complete a Python file")


def test_a_server_may_refuse_one_field_after_another(agent, server):
    def answer(request):
        for name in ("temperature", "max_tokens", "system", "seed"):
            if name in what_it_sends(request):
                return failure(400, f"{name} message is not allowed")
        return completion(BODY)

    server.script = answer
    assert agent.generate([PROMPT]) == [BODY]
    assert agent.refused == ["temperature", "max_tokens", "system", "seed"]


def test_a_limit_that_is_refused_by_both_names_is_told(agent, server):
    server.script = lambda request: failure(400, f"{'max_tokens' if 'max_tokens' in request else LIMIT} is too large")
    assert f"answers 400 ({LIMIT} is too large)" in refusal(agent) and len(server.requests) == 2


def test_content_in_parts_is_read(agent, server):
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    server.says(completion([thought, {"type": "text", "text": BODY[:30]}, {"type": "text", "text": BODY[30:]}]))
    assert agent.generate([PROMPT]) == [BODY]


def test_json_that_is_called_text_is_read(agent, server):
    server.says((200, {"content-type": "text/plain"}, completion(BODY)[2]))
    assert agent.generate([PROMPT]) == [BODY]


@pytest.mark.parametrize("form", [pytest.param("date", marks=pytest.mark.nightly), "retry-after", "retry-after-ms"])
def test_a_server_says_when_to_ask_again(agent, server, form):
    headers = {"retry-after": "1.5", "retry-after-ms": "1500", "date": None}
    asked = []

    def answer(request):
        asked.append(time.time())
        if len(asked) > 1:
            return completion(BODY)
        date = formatdate(int(asked[0]) + 3, usegmt=True)  # whole seconds
        return failure(429, headers={"retry-after": date} if form == "date" else {form: headers[form]})

    server.script = answer
    assert agent.generate([PROMPT]) == [BODY]
    waited = asked[1] - (int(asked[0]) + 1.5 if form == "date" else asked[0])
    assert 1.4 < waited < 4, "without a word it would be half a second"


def test_a_slow_server_that_answers_one_at_a_time(server):
    one, answer = threading.Lock(), completion(BODY)

    def slowly(request):
        with one:
            time.sleep(0.15)
            return answer

    server.script = slowly
    patient = {"base_url": server.url, "api_key": "secret", "wait_seconds": 0.5}
    assert ChatAgent("toy", **patient, at_once=1, retries=0).generate([PROMPT] * 8) == [BODY] * 8
    said = refusal(ChatAgent("toy", **patient, retries=0), [PROMPT] * 8)
    assert "within 0.5 s, with 8 requests at once and 0 retries; raise chat.wait_seconds or lower chat.at_once" in said


def test_the_settings_are_those_that_an_agent_has_by_itself(agent):
    assert load_defaults().chat.plain() == {
        name: getattr(agent, name) for name in ("wait_seconds", "at_once", "retries")
    }


@pytest.mark.parametrize(
    "body",
    [b"<html>hello</html>", b"{", b"{}", b"[]", b"null", b'"text"', b'{"choices": []}', b'{"choices": [{}]}',
     b'{"choices": [{"message": {"content": 5}}]}', b'{"choices": [{"message": null}]}', b"\xff\xfe"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_what_is_no_chat_completion_is_one_line(agent, server, body, kind):
    server.says((200, {"content-type": kind}, body))
    assert "something else than a chat completion" in refusal(agent)


EMPTY = {
    "length": completion(None, reason="length", reasoning_content="Which classifier?"),
    "refusal": completion(None, refusal="I can't help with that."),
    "content_filter": failure(400, "filtered", code="content_filter"),
    "stop": completion("<think>\nLet me see.\n</think>"),
    "unknown": completion("", reason=None),
}
ACT = {"max_new_tokens": 5, "generator": torch.Generator(), "temperature": 1.0, "top_k": 0}


@pytest.mark.parametrize("reason", EMPTY)
def test_why_an_answer_is_empty_is_recorded(agent, server, reason):
    server.says(EMPTY[reason], completion(BODY), completion(BODY, reason="length"))
    (empty,), (whole,), (cut,) = (agent.act([PROMPT], **ACT) for _ in range(3))
    assert (empty.body, whole.body, cut.body) == ("", BODY, BODY)
    assert (empty.finished, whole.finished, cut.finished) == (reason != "length", True, False)
    assert agent.counts["empty"] == {reason: 1} and sum(agent.counts["answers"].values()) == 3
    assert agent.empty_answers() == f"finish reason {reason}: 1"


def test_a_run_whose_first_answers_are_all_empty_stops(agent, server):
    server.says(EMPTY["length"], EMPTY["refusal"], EMPTY["length"])
    assert [action.body for action in agent.act([PROMPT], **ACT)] == [""]
    resumed = ChatAgent("toy", base_url=server.url, api_key="secret")
    resumed.set_state(agent.get_state())
    for one in (agent, resumed):
        with pytest.raises(UserError) as error:
            one.act([PROMPT], **ACT)
        assert "all answers of toy are empty (finish reason length: " in str(error.value)
    assert resumed.counts["empty"] == {"length": 2} and agent.counts["empty"] == {"length": 1, "refusal": 1}


def test_the_endpoint_is_told_without_what_is_secret():
    agent = ChatAgent("toy", base_url="https://name:secret@host.example:8080/v1?key=secret", api_key="secret")
    assert agent.endpoint == "https://host.example:8080/v1"


def test_a_server_that_is_not_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = ChatAgent(
        "toy", base_url=f"http://name:secret@127.0.0.1:{port}/v1", api_key="secret", retries=1
    )  # after half a second
    begin = time.monotonic()
    assert "cannot be reached" in refusal(agent, [PROMPT] * 8)
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("url", ["localhost", "localhost:8000/v1", "ftp://127.0.0.1/v1", "http://", "http:///v1"])
def test_an_address_that_is_none(url):
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        ChatAgent("toy", base_url=url, api_key="secret")
