"""The page, in a browser on a desk and on a phone, and its functions."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from siren.serve.engine import Engine
from tests.browser import Browser
from tests.serve.conftest import LIMITS

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
    studio.folder.cleanup()


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`siren ui` with two models."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other = shutil.copytree(folder, tmp_path_factory.mktemp("other") / "bundle")
    verb = [sys.executable, "-m", "siren.cli", "ui", "--port", str(port), "--max-seconds", "60"]
    process = subprocess.Popen([*verb, "--model", str(folder), "--model", str(other)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/"
    while True:
        try:
            httpx.get(url, trust_env=False).raise_for_status()
            break
        except httpx.HTTPError:
            assert process.poll() is None
            time.sleep(0.2)
    yield url
    process.terminate()
    process.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "mobile"), [(1280, 900, False), (390, 844, True)])
def test_a_sound_is_heard_while_it_is_made(page, tmp_path, width, height, mobile):
    browser = Browser(tmp_path / "profile")

    def ask(seconds: str) -> None:
        browser.evaluate("document.querySelector('input[type=number]').focus(); document.activeElement.select()")
        browser.type(seconds)
        browser.press("Tab", 9)
        time.sleep(0.5)  # until the page has taken it
        browser.click("#make")

    try:
        browser.size(width, height, mobile)
        browser.open(page)
        browser.until("!!document.querySelector('#prompt textarea')", 60)
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
        browser.until("document.querySelectorAll('#files a').length >= 2", 90)
        assert browser.evaluate("['img', 'svg'].every(kind => document.querySelector(`#picture0 ${kind}`))")
        assert browser.evaluate("document.documentElement.scrollWidth") == width  # nothing to the side
        from_elsewhere = "performance.getEntriesByType('resource').filter(e => !/^(data|blob):/.test(e.name) && "
        assert browser.evaluate(from_elsewhere + "!e.name.startsWith(location.origin)).length") == 0
    finally:
        browser.close()
