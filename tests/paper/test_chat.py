"""The chat agent against a real HTTP server that speaks the protocol, well and badly."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from etpo_core.errors import UserError
from etpo_paper.environment.prompts import Prompt, task_prompt
from etpo_paper.model import chat
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


def completion(text, usage=(11, 7)):
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "toy",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
    }
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return 200, {}, json.dumps(body).encode()


SOON = {"retry-after-ms": "5"}  # lets the client repeat a request at once


def failure(status, message="no", headers=SOON, **fields):
    return status, headers, json.dumps({"error": {"message": message, **fields}}).encode()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def agent(server):
    return ChatAgent("toy", base_url=server.url, api_key="secret")


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
    assert (agent.prompt_tokens, agent.completion_tokens) == (1000, 45)
    assert sorted(request["seed"] for request in server.requests) == list(range(5, 15))
    agent.generate([Prompt("#3#")])
    assert (agent.prompt_tokens, agent.completion_tokens, agent.action_tokens) == (1100, 48, [3])


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


def test_a_server_that_does_not_count_tokens(agent, server):
    server.says(completion(BODY, usage=None))
    assert agent.generate([PROMPT]) == [BODY] and agent.action_tokens == [0]


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
    assert "come back later" in refusal(agent) and len(server.requests) == chat.RETRIES + 1


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
        (200, {"error": {"message": "provider is down", "code": 502}}, "answers with an error (provider is down)"),
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


@pytest.mark.parametrize(
    "refused",
    [failure(400, "no", param="max_tokens"), failure(400, "use max_completion_tokens")],
    ids=["field", "text"],
)
def test_models_that_know_the_limit_by_its_newer_name(agent, server, refused):
    server.says(refused, completion(BODY))
    assert agent.generate([PROMPT], max_new_tokens=5) == [BODY]
    assert agent.generate([PROMPT], max_new_tokens=6) == [BODY]
    assert [request.get("max_completion_tokens") for request in server.requests] == [None, 5, 6]


def test_all_requests_in_flight_learn_the_newer_name(agent, server):
    def answer(request):
        old = "max_tokens" in request
        return failure(400, "no", param="max_tokens") if old else completion(BODY)

    server.script = answer
    assert agent.generate([PROMPT] * 8) == [BODY] * 8


@pytest.mark.parametrize(
    "body",
    [b"<html>hello</html>", b"{", b"{}", b"[]", b"null", b'"text"', b'{"choices": []}', b'{"choices": [{}]}',
     b'{"choices": [{"message": {"content": 5}}]}', b'{"choices": [{"message": null}]}', b"\xff\xfe"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_what_is_no_chat_completion_is_one_line(agent, server, body, kind):
    server.says((200, {"content-type": kind}, body))
    assert "something else than a chat completion" in refusal(agent)


def test_an_empty_answer_is_an_empty_action(agent, server):
    server.says(completion(None))
    assert agent.generate([PROMPT]) == [""]


def test_a_server_that_is_not_there(monkeypatch):
    monkeypatch.setattr(chat, "RETRIES", 1)  # after about half a second
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = ChatAgent("toy", base_url=f"http://name:secret@127.0.0.1:{port}/v1", api_key="secret")
    begin = time.monotonic()
    assert "cannot be reached" in refusal(agent, [PROMPT] * 8)
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("url", ["localhost", "localhost:8000/v1", "ftp://127.0.0.1/v1", "http://", "http:///v1"])
def test_an_address_that_is_none(url):
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        ChatAgent("toy", base_url=url, api_key="secret")
