"""The page, in a browser on a desk and on a phone, and its functions."""

import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from fastapi import FastAPI
from fastapi.testclient import TestClient

from siren.cli import sound
from siren.generate.bundle import sha256
from siren.serve.engine import Engine
from tests.browser import Browser
from tests.generate import builders
from tests.processes import free_port, wait_for
from tests.serve.conftest import LIMITS

ui = pytest.importorskip("siren.serve.ui")


def test_clips_of_two_models_are_made_together_and_can_be_downloaded(bundle):
    engines = {"one": Engine(bundle, LIMITS), "two": Engine(bundle, LIMITS)}
    studio = ui.Studio(engines)
    for engine in engines.values():
        engine.start()
    wanted = [("one", 7), ("two", 7), ("one", 8)]
    *_, keys = studio.make(wanted, "a dog barks", 0.1, temperature=0.8, top_p=1, guidance=1)
    one, two, other = (studio.recordings[key].wav for key in keys)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    shown = ui.shown(studio, keys[0])
    assert 'data-ended="true"' in shown
    assert "data:image/png" in shown
    assert [f'href="play/{keys[0]}.{kind}" download="a-dog-barks-7-' in shown for kind in ui.KINDS] == [True] * 3
    assert "a dog barks" in ui.earlier(studio, ["gone", keys[0]])
    told = studio.recordings[keys[0]].facts
    assert (told["prompt"], told["seed"], told["model"]) == ("a dog barks", 7, "one")
    assert told["sampling"] == {"temperature": 0.8, "top_k": 8, "top_p": 1, "guidance": 1}
    *_, (key,) = studio.make([("one", 7)], "a dog barks", 0.1, top_k=None)  # the page's 0
    assert studio.recordings[key].facts["sampling"]["top_k"] is None
    with pytest.raises(ValueError, match="allowed; ask for less"):
        next(studio.make(wanted, "a dog barks", 9.0))
    gone = studio.make([("one", 0)], "a dog barks", 0.2)
    (key,) = next(gone)
    gone.close()
    assert studio.recordings[key].ended
    for engine in engines.values():
        engine.close()


def test_a_sound_is_served_whole_in_parts_and_with_its_sidecar(bundle):
    """Players on phones ask for ranges and play nothing else."""
    engine, server = Engine(bundle, LIMITS), FastAPI()
    studio = ui.Studio({"one": engine})
    server.include_router(ui.sounds(studio))
    engine.start()
    with TestClient(server) as client:
        *_, (key,) = studio.make([("one", 3)], "a dog barks", 0.1)
        whole = client.get(f"/play/{key}.wav")
        assert (whole.status_code, whole.headers["accept-ranges"]) == (200, "bytes")
        wav, rate = soundfile.read(io.BytesIO(whole.content))
        assert (len(wav), rate) == (1600, 16000)
        for asked, begin, end in (("0-", 0, 3244), ("100-199", 100, 200), ("3000-9999", 3000, 3244)):
            part = client.get(f"/play/{key}.wav", headers={"Range": f"bytes={asked}"})
            assert (part.status_code, part.content) == (206, whole.content[begin:end])
            assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/3244"
        assert np.array_equal(soundfile.read(io.BytesIO(client.get(f"/play/{key}.flac").content))[0], wav)
        assert client.get(f"/play/{key}.json").json() == studio.recordings[key].facts
        assert client.get(f"/play/{key}.exe").status_code == client.get("/play/other.wav").status_code == 404
    engine.close()


READY = """(() => {
  const box = document.querySelector('#prompt textarea')?.getBoundingClientRect();
  return box && document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2)?.tagName === 'TEXTAREA';
})()"""  # the page is built up piece by piece


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`siren ui` with two models, one of them under two names."""
    port = free_port()
    same = shutil.copytree(folder, tmp_path_factory.mktemp("same") / "bundle")
    other = builders.folder(tmp_path_factory.mktemp("other"), replace(builders.SAMPLING, temperature=0.7))
    verb = [sys.executable, "-m", "siren.cli", "ui", "--port", str(port), "--max-seconds", "60"]
    verb += [f"--model={path}" for path in (folder, same, other)] + ["--allow-host", "sounds.example.org"]
    process = subprocess.Popen(verb, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/"
    wait_for(url, process)
    yield url
    process.terminate()
    process.wait(60)


@pytest.fixture
def caller(page: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=page, timeout=60, trust_env=False) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("192.168.1.5:7862", "http://192.168.1.5:7862"),  # --host 0.0.0.0, from another machine
        ("sounds.example.org", "https://sounds.example.org"),  # behind a proxy that passes the Host on
        ("127.0.0.1:7862", "https://sounds.example.org"),  # and behind one that does not
    ],
)
def test_gradios_own_calls_go_on_under_every_name_that_is_let_in(caller, host, origin):
    """What its page does in a browser: settings, a job in the queue, and its events as they come."""
    caller.headers.update({"Host": host, "Origin": origin})
    settings = caller.get("config").json()
    [notes] = [part for part in settings["components"] if part["props"].get("elem_id") == "notes"]
    assert "loaded once" in notes["props"]["value"]
    [call] = [d for d in settings["dependencies"] if d["api_name"] == "generate"]
    kinds = {part["id"]: part for part in settings["components"]}
    asked = [kinds[i]["props"].get("value") for i in call["inputs"]]
    asked[2] = "a dog barks"
    job = {"data": asked, "fn_index": call["id"], "session_hash": host + origin}
    assert caller.post("gradio_api/queue/join", json=job).status_code == 200
    events = []
    with caller.stream("GET", "gradio_api/queue/data", params={"session_hash": host + origin}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                events.append(json.loads(line[5:]))
                if events[-1]["msg"] in ("process_completed", "close_stream"):
                    break
    assert events[-1]["success"], events[-1]
    [key] = set(re.findall(r"play/([\w-]+)\.wav", json.dumps(events)))
    assert len(caller.get(f"play/{key}.wav").content) == 44 + 2 * 1600


@pytest.mark.slow
def test_the_page_answers_to_no_name_that_it_does_not_know(page):
    for path, method in (("", "GET"), ("config", "GET"), ("gradio_api/queue/join", "POST"), ("play/x.wav", "GET")):
        answer = httpx.request(method, page + path, headers={"Host": "evil.example"}, trust_env=False)
        assert answer.status_code == 421
        assert "start it with --allow-host evil.example" in answer.text
        answer = httpx.request(method, page + path, headers={"Origin": "https://evil.example"}, trust_env=False)
        assert answer.status_code == 403


def test_two_names_of_one_model_are_loaded_once_and_both_told(folder, tmp_path):
    same = shutil.copytree(folder, tmp_path / "same")
    other = builders.folder(tmp_path / "other", replace(builders.SAMPLING, temperature=0.7))
    engines, notes = sound._engines([str(folder), str(same), str(other), str(folder)], 1.0)
    assert list(engines) == [str(folder), str(other)]
    digests = [engine.bundle.sha256 for engine in engines.values()]
    assert digests == [sha256(folder), sha256(other)]
    assert notes == [
        f"{folder} and {same}: the same model ({digests[0][:12]}), loaded once",
        f"{folder} twice: the same model ({digests[0][:12]}), loaded once",
    ]
    (same / "codec" / "extra").write_text("changed")
    with pytest.raises(ValueError, match="codec/extra"):
        sound._engines([str(folder), str(same)], 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "mobile"), [(1280, 900, False), (390, 844, True)])
def test_a_sound_is_heard_while_it_is_made(page, tmp_path, width, height, mobile):
    browser = Browser(tmp_path / "profile")

    def ask(seconds: str) -> None:
        browser.evaluate("document.querySelector('input[type=number]').focus(); document.activeElement.select()")
        browser.type(seconds)
        browser.press("Tab", 9)
        time.sleep(1.5)  # until the page has taken it, on a busy machine
        browser.click("#make")

    try:
        browser.size(width, height, mobile)
        browser.open(page)
        browser.until(READY, 60)
        browser.click("#prompt textarea")
        browser.type("a dog barks")
        ask("60")
        browser.until("document.querySelector('#player0 audio')?.readyState >= 2", 90)
        assert browser.evaluate("document.querySelector('#picture0 figure').dataset.ended") == "false"
        assert browser.evaluate("document.querySelector('#player0 audio').duration") == 60
        browser.click("#stop")
        ask("0.5")
        browser.until("document.querySelector('#player0 audio')?.duration == 0.5", 90)
        browser.until("document.querySelector('#picture0 figure').dataset.ended == 'true'", 90)
        browser.until("document.querySelectorAll('#picture0 a[download]').length == 3", 90)
        assert browser.evaluate("['img', 'svg'].every(kind => document.querySelector(`#picture0 ${kind}`))")
        assert browser.evaluate("document.documentElement.scrollWidth") == width  # nothing to the side
        places = "['ask', 'result', 'settings'].map(id => document.getElementById(id).getBoundingClientRect())"
        ask_ends, result_begins, result_ends, settings_begin = browser.evaluate(
            f"(() => {{ const [a, r, s] = {places}; return [a.bottom, r.top, r.bottom, s.top]; }})()"
        )
        if mobile:  # what was asked, what became of it, and the settings last
            assert ask_ends <= result_begins < result_ends <= settings_begin
        else:
            assert result_begins < ask_ends <= settings_begin
        assert browser.evaluate("getComputedStyle(document.body).getPropertyValue('--accent')")  # the report's colours
        from_elsewhere = "performance.getEntriesByType('resource').filter(e => !/^(data|blob):/.test(e.name) && "
        assert browser.evaluate(from_elsewhere + "!e.name.startsWith(location.origin)).length") == 0
    finally:
        browser.close()
