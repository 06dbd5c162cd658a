"""Captions from an address that speaks OpenAI's chat protocol: a server on loopback with faults."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import soundfile

from siren.config import ConfigError, Download, Endpoint, LanguageModel
from siren.filter.caption import captioners, endpoint
from siren.filter.caption.protocol import Answer, Clip, Question
from tests.collect.test_download import SETTINGS
from tests.filter.test_language_models import describe

Reply = Callable[["Handler", dict[str, Any]], None]


class Server:
    """Answers every question with what it heard; `faults` come first, one for each request."""

    def __init__(self) -> None:
        self.faults: list[Reply] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.mutex, self.released = threading.Lock(), threading.Event()
        self.now = self.most = 0  # requests in hand, and the most of them at once
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.ours = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        ours: Server = self.server.ours  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with ours.mutex:
            ours.now += 1
            ours.most = max(ours.most, ours.now)
            ours.bodies.append(body)
            ours.keys.add(self.headers.get("Authorization"))
            fault = ours.faults.pop(0) if ours.faults else None
        try:
            assert self.path == "/v1/chat/completions"
            (fault or heard)(self, body)
        finally:
            with ours.mutex:
                ours.now -= 1

    def give(self, code: int, data: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def heard(handler: Handler, body: dict[str, Any]) -> None:
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return say(content)(handler, body)
    wav, rate = soundfile.read(io.BytesIO(base64.b64decode(content[0]["input_audio"]["data"])))
    return say(f"A sound of {len(wav) / rate:g} s with seed {body['seed']}.")(handler, body)


def say(text: Any, reason: str = "stop") -> Reply:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return lambda handler, body: handler.give(200, json.dumps({"choices": [choice]}).encode())


def status(code: int, **headers: str) -> Reply:
    return lambda handler, body: handler.give(code, b"{}", **headers)


def stall(handler: Handler, body: dict[str, Any]) -> None:
    handler.server.ours.released.wait(60)  # type: ignore[attr-defined]
    handler.close_connection = True


def cut(handler: Handler, body: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.released.set()
    made.http.shutdown()
    made.http.server_close()
    thread.join()


LIMITS = replace(SETTINGS, concurrency=3, max_wait_seconds=1.0)


def model(server: Server, **changes: Any) -> LanguageModel:
    given = replace(LIMITS, **changes)
    return describe("qwen2-audio", endpoint=Endpoint(server.url, given), candidates=5, temperature=0.7, top_p=0.9)


def clip(name: str, samples: int = 8000) -> Clip:
    return Clip(name, wav=np.full(samples, 0.25, np.float32), sample_rate=8000)


def test_five_answers_each_with_sound_and_a_seed_of_its_own(server: Server) -> None:
    captioner = captioners.Describer(model(server), 0)
    found = captioner([clip("a"), clip("b", 4000)])
    assert [[answer.text.split(" with")[0] for answer in row] for row in found] == [  # type: ignore[union-attr]
        ["A sound of 1 s"] * 5,
        ["A sound of 0.5 s"] * 5,
    ]
    assert len({body["seed"] for body in server.bodies}) == 10
    assert captioner([clip("b", 4000)]) == [found[1]]  # whatever else is asked
    assert {(body["model"], body["temperature"], body["top_p"], body["max_tokens"]) for body in server.bodies} == {
        ("qwen2-audio", 0.7, 0.9, 8)
    }
    content = server.bodies[0]["messages"][0]["content"]
    assert content[1] == {"type": "text", "text": "describe the dog and the rain"}
    assert captioner.provenance()["url"] == server.url


def test_the_key_comes_from_the_environment_and_no_more_are_asked_at_once_than_allowed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(endpoint.KEY, "secret")
    captioner = captioners.Describer(model(server), 0)
    captioner([clip(name) for name in "abcd"])
    assert server.keys == {"Bearer secret"}
    assert 1 <= server.most <= 3
    assert "secret" not in json.dumps(captioner.provenance())
    monkeypatch.delenv(endpoint.KEY)
    captioner([clip("a")])
    assert server.keys == {"Bearer secret", None}


@pytest.mark.parametrize(
    "fault",
    [status(500), status(503, Retry_After="0"), status(429, Retry_After="0"), stall, cut, status(200)],
    ids=["500", "503", "429", "stall", "cut", "no choices"],
)
def test_a_fault_that_passes_leaves_no_trace(server: Server, fault: Reply) -> None:
    right = captioners.Describer(model(server), 0)([clip("a")])
    server.faults = [fault]
    # However busy the machine is, one of twenty attempts is answered in time.
    hasty = {"stall_seconds": 0.3, "attempts": 20} if fault is stall else {}
    assert captioners.Describer(model(server, **hasty), 0)([clip("a")]) == right
    assert server.faults == []
    assert len(server.bodies) >= 11 if fault is stall else len(server.bodies) == 11


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        (status(500), "server_error: ", 3),
        (status(429), "rate_limited: ", 3),
        (status(429, Retry_After="60"), "rate_limited: ", 1),
        (status(401), "forbidden: ", 1),
        (status(404), "not_found: ", 1),
        (status(400), "refused: ", 1),
        (cut, "network: ", 3),
        (status(200, Content_Encoding="gzip"), "network: ", 3),
        (stall, "timeout: ", 3),
        (say({"a": 1}), "bad_answer: ", 3),
        (status(200), "bad_answer: ", 3),
        (say("  "), "empty: ", 1),
        (say(None), "empty: ", 1),
        (say("a dog that", "length"), "unfinished: ", 1),
    ],
)
def test_a_fault_that_stays_is_a_missing_answer_with_its_reason(
    server: Server, fault: Reply, reason: str, tries: int
) -> None:
    server.faults = [fault] * tries
    limits = replace(LIMITS, concurrency=1, stall_seconds=0.3 if fault is stall else LIMITS.stall_seconds)
    asked = endpoint.Endpoint(model(server), Endpoint(server.url, limits))
    first = asked.answer([Question("what?", 1)])
    assert first[0].text is None
    assert first[0].missing.startswith(reason)  # type: ignore[union-attr]
    assert ("after 3 attempts" in first[0].missing) == (tries == 3)  # type: ignore[operator]
    if fault is stall:  # what nobody waited for may not have reached the server yet
        server.faults, asked.endpoint = [], Endpoint(server.url, LIMITS)
    else:
        assert len(server.bodies) == tries
    if reason != "rate_limited: ":
        assert asked.answer([Question("what?", 1)]) == [Answer("what?")]  # it was the question's fault alone


def test_one_failing_question_takes_no_other_with_it(server: Server) -> None:
    def picky(handler: Handler, body: dict[str, Any]) -> None:
        (status(400) if body["messages"][0]["content"] == "b" else heard)(handler, body)

    server.faults = [picky] * 6
    asked = endpoint.Endpoint(model(server), model(server).endpoint)  # type: ignore[arg-type]
    answers = asked.answer([Question(text, 0) for text in "abcdef"])
    assert [answer.text for answer in answers] == ["a", None, "c", "d", "e", "f"]


def test_what_was_cut_ends_with_its_last_sentence(server: Server) -> None:
    server.faults = [say("A dog barks. Then a ca", "length")]
    asked = endpoint.Endpoint(model(server), model(server).endpoint)  # type: ignore[arg-type]
    assert asked.answer([Question("what?", 0)]) == [Answer("A dog barks.")]


def test_no_server_at_all_is_a_reason(server: Server) -> None:
    gone = Endpoint("http://127.0.0.1:9/v1", Download(1, 2, 0.0, 1.0, 0.2, None))
    answer = endpoint.Endpoint(model(server), gone).answer([Question("what?", 0)])[0]
    assert answer.missing.startswith("network: ")  # type: ignore[union-attr]


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="'localhost:8000'; an address such as"):
        Endpoint("localhost:8000", Download(1, 1, 0.0, 1.0, 0.2, None))
