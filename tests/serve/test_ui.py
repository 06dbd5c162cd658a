"""The page, in a browser on a desk and on a phone, and its functions."""

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import uvicorn

from siren.serve.engine import Engine
from tests.serve.conftest import LIMITS
from tests.study.browser import Browser

ui = pytest.importorskip("siren.serve.ui")


def test_clips_of_two_models_are_made_together_and_can_be_downloaded(bundle):
    engines = {"one": Engine(bundle, LIMITS), "two": Engine(bundle, LIMITS)}
    studio = ui.Studio(engines)
    for engine in engines.values():
        engine.start()
    wanted = [("one", 7), ("two", 7), ("one", 8)]
    *_, keys = studio.make(wanted, "a dog barks", 0.1, temperature=0.8, top_k=None, top_p=1, guidance=1)
    one, two, other = (studio.recordings[key].wav for key in keys)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    paths = [Path(path) for path in studio.files(keys)]
    assert [path.suffix for path in paths] == [".wav", ".json"] * 3
    assert len(soundfile.read(paths[0])[0]) == 1600
    told = json.loads(paths[1].read_text())
    assert (told["prompt"], told["seed"], told["model"]) == ("a dog barks", 7, "one")
    assert told["sampling"] == {"temperature": 0.8, "top_k": 8, "top_p": 1, "guidance": 1}
    shown = ui.shown(studio, keys[0])
    assert 'data-ended="true"' in shown
    assert "data:image/png" in shown
    with pytest.raises(ValueError, match="allowed; ask for less"):
        next(studio.make(wanted, "a dog barks", 9.0))
    gone = studio.make([("one", 0)], "a dog barks", 0.2)
    (key,) = next(gone)
    gone.close()
    assert studio.recordings[key].ended
    for engine in engines.values():
        engine.close()


@pytest.fixture
def page(bundle) -> Iterator[tuple[str, Engine]]:
    limits = dataclasses.replace(LIMITS, seconds=2.0)
    engines = {"models:/siren/1": Engine(bundle, limits), "models:/siren/2": Engine(bundle, limits)}
    server = uvicorn.Server(uvicorn.Config(ui.app(engines), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield "http://127.0.0.1:{1}/".format(*server.servers[0].sockets[0].getsockname()), engines["models:/siren/1"]
    server.should_exit = True
    thread.join(20)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Gradio
@pytest.mark.parametrize(("width", "height", "mobile"), [(1280, 900, False), (390, 844, True)])
def test_a_sound_is_heard_while_it_is_made(page, tmp_path, width, height, mobile):
    url, engine = page
    lane, gate = engine.lanes[True], threading.Event()
    step = lane.step
    lane.step = lambda: (lane.at.max() < 700 or gate.wait(60)) and step()  # type: ignore[method-assign]
    browser = Browser(tmp_path / "profile")
    try:
        browser.size(width, height, mobile)
        browser.open(url)
        browser.until("!!document.querySelector('#prompt textarea')", 60)
        browser.click("#prompt textarea")
        browser.type("a dog barks")
        browser.evaluate("[...document.querySelectorAll('input[type=number]')][0].focus()")
        browser.evaluate("document.activeElement.select()")
        browser.type("2")
        browser.press("Tab", 9)
        time.sleep(0.5)
        browser.click("#make")
        browser.until("document.querySelector('#player0 audio')?.readyState >= 2", 60)
        assert browser.evaluate("document.querySelector('#picture0 figure').dataset.ended") == "false"
        assert browser.evaluate("document.querySelector('#player0 audio').duration") == 2
        gate.set()
        browser.until("document.querySelector('#picture0 figure').dataset.ended == 'true'", 60)
        browser.until("document.querySelectorAll('#files a').length >= 2", 60)
        assert browser.evaluate(
            "!!document.querySelector('#picture0 img') && !!document.querySelector('#picture0 svg')"
        )
        assert browser.evaluate("document.documentElement.scrollWidth") == width  # nothing to the side
        from_elsewhere = "performance.getEntriesByType('resource').filter(e => !/^(data|blob):/.test(e.name) && "
        assert browser.evaluate(from_elsewhere + "!e.name.startsWith(location.origin)).length") == 0
    finally:
        gate.set()
        browser.close()
