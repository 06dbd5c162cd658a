"""The service as a client sees it: sounds, refusals, and what a hostile client gets."""

import base64
import contextlib
import io
import itertools
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn

from siren.serve import app as service
from siren.serve.engine import Engine
from siren.serve.sound import encode, pcm, wav_header
from tests.browser import Browser
from tests.serve.conftest import LIMITS

PROMPT = {"prompt": "a dog barks"}
HELLO = {"headers": {"Content-Type": "application/json"}}


class Running:
    """The service on a loopback port, in a thread."""

    def __init__(self, engine: Engine, names: Sequence[str] = ()) -> None:
        self.engine = engine
        settings = uvicorn.Config(service.app(engine, "models:/siren/1", names), port=0, log_level="error", ws="none")
        self.server = service.Server(settings, [engine])
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        self.address = self.server.servers[0].sockets[0].getsockname()
        self.client = httpx.Client(base_url="http://{}:{}".format(*self.address), timeout=30, trust_env=False)

    def post(self, body: dict, path: str = "/generate") -> httpx.Response:
        return self.client.post(path, json=body)

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        assert found, name
        return float(found[1])

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def running(bundle) -> Iterator[Running]:
    made = Running(Engine(bundle, LIMITS))
    yield made
    made.stop()


def test_a_sound_comes_with_how_it_was_made(running):
    answer = running.post(PROMPT | {"seed": 3, "seconds": 0.2, "temperature": 0.5})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/wav"
    wav, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
    assert (len(wav), rate) == (3200, 16000)
    told = json.loads(answer.headers["siren-sidecar"])
    assert (told["seed"], told["seconds"], told["model"]) == (3, 0.2, "models:/siren/1")
    assert told["model_sha256"] == running.engine.bundle.sha256
    assert told["sampling"] == {"temperature": 0.5, "top_k": 8, "top_p": None, "guidance": 2.0}
    both = running.post(PROMPT | {"seed": 3, "seconds": 0.2, "temperature": 0.5}, "/generate?json=true").json()
    assert base64.b64decode(both["audio"]) == answer.content
    assert both["sidecar"] == {"prompt": "a dog barks"} | told
    flac = running.post(PROMPT | {"seed": 3, "seconds": 0.2, "temperature": 0.5, "format": "flac"})
    assert np.array_equal(soundfile.read(io.BytesIO(flac.content), dtype="float32")[0], wav)
    (own,) = running.engine.bundle.sample(["a dog barks"], [3], 0.2, service.Sampling(0.5, 8, None, 2.0))
    assert np.abs(wav - own).max() < 1e-3


def test_the_calls_of_the_guide_work(running, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    calls = [block for block in re.findall(r"```\w+\n(.*?)```", text, re.DOTALL) if ":7860/generate" in block]
    call, program = (block.replace("127.0.0.1:7860", "{}:{}".format(*running.address)) for block in calls)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "*")
    asked = running.post({"prompt": "a dog barks while rain falls", "seed": 3}).content
    if shutil.which("curl"):
        subprocess.run(["bash", "-e", "-c", call], check=True, capture_output=True)
        assert (tmp_path / "dog.wav").read_bytes() == asked
        (tmp_path / "dog.wav").unlink()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, {})
    assert (tmp_path / "dog.wav").read_bytes() == asked
    assert json.loads(printed.getvalue())["seed"] == 3


def test_a_streamed_sound_is_the_same_and_comes_in_pieces(running):
    whole = running.post(PROMPT | {"seconds": 0.2}).content
    with running.client.stream("POST", "/generate", json=PROMPT | {"seconds": 0.2, "stream": True}) as answer:
        assert int(answer.headers["content-length"]) == len(whole)
        streamed = b"".join(answer.iter_raw())
    assert streamed[:44] == whole[:44]
    difference = np.frombuffer(streamed[44:], "<i2").astype(int) - np.frombuffer(whole[44:], "<i2")
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "prompt: Field required"),
        ({"prompt": "  "}, 422, "the prompt is empty"),
        (PROMPT | {"seconds": 9}, 422, "0.2 are allowed"),
        (PROMPT | {"steps": 9}, 422, "steps: Extra inputs"),
        (PROMPT | {"seed": -1}, 422, "seed: Input should be greater"),
        (PROMPT | {"stream": True, "format": "flac"}, 422, "only a wav is streamed"),
        ({"prompt": "x" * 3000}, 413, "more than 2000 bytes"),
        (b'{"prompt": "\\ud800"}', 422, "unicode"),
        (b'{"prompt": ', 422, "JSON decode error"),
        (b"[" * 1900, 400, "parsing"),
        (b'{"prompt": "rain", "temperature": NaN}', 422, "finite number"),
        (b'{"prompt": "rain", "seed": ' + b"9" * 1900 + b"}", 422, "seed"),
        (b'"\xff"', 400, "parsing"),
    ],
)
def test_what_is_wrong_is_said_as_json_with_a_remedy(running, body, status, said):
    answer = running.client.post("/generate", **HELLO, content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert said in answer.json()["error"]
    assert answer.json()["remedy"]


def test_wrong_places_are_told_the_right_ones_and_counted_together(running):
    for n in range(3):
        assert "/generate" in running.client.get(f"/nowhere/{n}").json()["remedy"]
    assert running.client.get("/generate").status_code == 405
    assert running.metric('siren_requests_total{code="404",path="other"}') >= 3


def test_it_tells_how_it_is(running):
    running.post(PROMPT)
    assert running.client.get("/healthz").json()["status"] == "ok"
    assert running.client.get("/readyz").json()["limits"]["rows"] == 3
    assert running.metric("siren_sound_seconds_total") >= 0.04
    assert running.metric("siren_realtime_factor") > 0
    assert running.metric("siren_sampling_bytes") == running.engine.memory
    for name in ("queue_length", "batch_occupancy"):
        assert running.metric(f"siren_{name}") == 0


def test_its_page_and_its_description_need_nothing_from_outside(running):
    page = running.client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"https?://|//cdn|@import|src=", page.text)
    told = running.client.get("/openapi.json").json()
    assert {"/generate", "/healthz", "/readyz", "/metrics"} == set(told["paths"])
    assert set(told["paths"]["/generate"]["post"]["responses"]) == {
        *("200", "400", "403", "413", "421", "422", "429", "503")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("width", "mobile"), [(1400, False), (390, True)])
def test_its_page_makes_a_sound_and_says_what_is_wrong(running, tmp_path, width, mobile):
    browser = Browser(tmp_path / "profile")
    try:
        browser.size(width, 844, mobile)
        browser.open(str(running.client.base_url))
        browser.until("document.querySelectorAll('#calls table').length > 4")
        browser.click("#try button")
        browser.until("document.getElementById('player').duration == 0.04")
        assert browser.evaluate("document.getElementById('file').download") == "a-dog-barks-while-rain-falls-0.wav"
        assert json.loads(browser.evaluate("document.getElementById('sidecar').textContent"))["samples"] == 640
        fields = "[...document.querySelectorAll('.row input, .row select')].map(e => e.getBoundingClientRect())"
        boxes = browser.evaluate(f"{fields}.map(r => [r.left, r.right])")
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(boxes))  # side by side
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        browser.evaluate("document.querySelector('[name=seconds]').value = 9")
        browser.click("#try button")
        browser.until("document.getElementById('said').textContent.includes('0.2 are allowed; ask for less')")
        assert not browser.evaluate("document.querySelector('#try button').disabled")
    finally:
        browser.close()


def _gated(running: Running) -> threading.Event:
    """Holds the batch at its next frame until it is set."""
    gate, lane = threading.Event(), running.engine.lanes[True]
    step = lane.step
    lane.step = lambda: gate.wait(30) and step()  # type: ignore[method-assign]
    return gate


def test_a_full_queue_is_429_and_a_listener_that_goes_away_makes_room(bundle):
    running = Running(Engine(bundle, LIMITS))
    gate = _gated(running)
    asked = json.dumps(PROMPT | {"stream": True}).encode()
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    callers = []

    def call() -> None:
        callers.append(socket.create_connection(running.address))
        callers[-1].sendall(head % len(asked) + asked)

    call()
    _until(lambda: running.engine.active == 1)
    for _ in range(LIMITS.queue):
        call()
    _until(lambda: running.metric("siren_queue_length") == LIMITS.queue)
    refused = running.post(PROMPT)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "waiting" in refused.json()["error"]
    jobs = list(running.engine.waiting)
    for caller in callers:
        caller.close()
    _until(lambda: all(job.cancelled for job in jobs))
    gate.set()
    _until(lambda: running.engine.active == 0 and not running.engine.waiting)
    assert running.metric("siren_cancelled_total") == 1 + LIMITS.queue
    assert running.metric("siren_frames_total") <= 2  # nobody heard more
    assert running.post(PROMPT).status_code == 200
    running.stop()


def _until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_after_a_signal_what_is_made_is_finished_and_what_waits_is_refused(bundle):
    running = Running(Engine(bundle, LIMITS))
    answers: list[httpx.Response] = []
    gate = _gated(running)

    def ask() -> None:
        answers.append(httpx.post(running.client.base_url.join("/generate"), json=PROMPT, timeout=30, trust_env=False))

    callers = [threading.Thread(target=ask) for _ in range(3)]
    callers[0].start()
    _until(lambda: running.engine.active == 1)
    for caller in callers[1:]:
        caller.start()
    _until(lambda: len(running.engine.waiting) == 2)
    running.server.handle_exit(15, None)
    gate.set()
    for caller in callers:
        caller.join(20)
    assert sorted(answer.status_code for answer in answers) == [200, 503, 503]
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["error"] == "the service is stopping"
    assert "retry-after" in refused.headers
    running.client.close()
    running.thread.join(20)
    assert not running.thread.is_alive()


def hostile(running: Running, cases: int) -> list[int]:
    """Requests that the description allows and that it does not, and what was answered."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_dict(running.client.get("/openapi.json").json())
    seen: list[int] = []
    ways = schema["/generate"]["POST"].as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
    worse = schema["/generate"]["POST"].as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

    @settings(
        max_examples=cases,
        deadline=None,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=ways | worse)
    def attack(case) -> None:
        answer = case.call(base_url=str(running.client.base_url))
        seen.append(answer.status_code)
        assert answer.status_code < 500
        if answer.status_code == 200:
            assert answer.headers["content-type"][0] in ("audio/wav", "audio/flac", "application/json")
        else:
            assert set(answer.json()) == {"error", "remedy"}

    attack()
    return seen


@pytest.mark.slow
def test_a_thousand_hostile_requests_get_no_500(running):
    seen = hostile(running, 1000)
    assert len(seen) >= 1000
    assert {200, 422} <= set(seen)


def test_samples_are_rounded_as_in_files(tmp_path):
    wav = np.linspace(-1.2, 1.2, 999, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", wav, 16000, subtype="PCM_16")
    assert encode(wav, 16000, "wav") == (tmp_path / "a.wav").read_bytes()
    assert wav_header(999, 16000) + pcm(wav[:10], 16000) + pcm(wav[10:], 16000) == encode(wav, 16000, "wav")
