"""A whole study as a rater has it: in a browser, by fingers and by keys, over a server that is killed in between."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from siren.study import answers, design, results
from tests.browser import Browser
from tests.processes import free_port, wait_for
from tests.study import builders

pytestmark = pytest.mark.slow
TAB, ARROW, ENTER = 9, 39, 13


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    made = Browser(tmp_path / "profile")
    yield made
    made.close()


class Server:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        verb = [sys.executable, "-m", "siren.cli", "study", "serve", str(self.folder), "--port", str(self.port)]
        self.process = subprocess.Popen(verb, stderr=subprocess.DEVNULL)
        wait_for(self.url, self.process)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    builders.study(tmp_path, {"general": 2, "multi-event": 1, "out-of-distribution": 1}, seconds=0.3)
    made = Server(tmp_path / "study")
    yield made
    made.kill()


def start(browser: Browser, code: str) -> None:
    browser.click("#code")
    browser.evaluate("document.getElementById('code').select()")
    browser.type(code)
    browser.press("Enter", ENTER, "\r")
    browser.until("!document.getElementById('trial').hidden || !document.getElementById('end').hidden")


def hear(browser: Browser, press: bool) -> None:
    for i, name in enumerate("abc"):
        browser.until(f"!players[{i}].button.disabled")
        browser.press(name) if press else browser.click(f".clip:nth-child({i + 1}) .play")
        browser.until(f"players[{i}].ended")


def tap_ranks(browser: Browser, order: list[int]) -> None:
    for question in design.QUESTIONS:
        for clip, rank in enumerate(order):
            browser.click(f"input[name='{question}-{clip}'][value='{rank}'] + span")


def following(browser: Browser) -> str:
    return browser.evaluate("trial.id")


def test_a_rater_ranks_by_touch_and_by_keys_and_resumes_over_a_killed_server(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    study = design.load(server.folder)
    book = answers.Book(server.folder, study)
    browser.size(390, 844, mobile=True)
    browser.open(server.url)
    browser.screenshot(tmp_path / "phone-welcome.png")
    start(browser, "Anna")
    first = following(browser)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390  # nothing to scroll sideways
    sizes = browser.evaluate(
        "[...document.querySelectorAll('button, fieldset span')].filter(e => e.offsetParent).map(e => e.offsetHeight)"
    )
    assert min(sizes) >= 44  # a thumb's size

    tap_ranks(browser, [2, 1, 3])
    assert browser.evaluate("document.getElementById('next').disabled")  # nothing was heard
    hear(browser, press=False)
    browser.click("input[name='fidelity-0'][value='1'] + span")  # trades places with the clip that had it
    browser.screenshot(tmp_path / "phone-trial.png")
    browser.click("#next")
    browser.until(f"trial.id !== '{first}'")
    [kept] = book.all()
    assert (kept.rater, kept.trial, kept.ranks) == ("anna", first, {"fidelity": [1, 2, 3], "instruction": [2, 1, 3]})
    assert kept.order == list(study.order("anna")[0][1])
    assert all(0.2 < seconds < 5 for seconds in kept.heard_seconds)

    browser.until("players.every(player => !player.button.disabled)")
    server.kill()  # in the middle of the second trial
    second = following(browser)
    hear(browser, press=False)
    tap_ranks(browser, [3, 2, 1])
    browser.click("#next")
    browser.until("document.getElementById('problem').textContent.includes('does not answer')")
    server.start()
    browser.until(f"trial.id !== '{second}'")  # the page tried again by itself
    assert book.done("anna") == {first, second}

    browser.size(1280, 900, mobile=False)  # the next day, another device, keys only
    browser.open(server.url)
    start(browser, "anna")
    assert browser.evaluate("document.getElementById('count').textContent") == "3 of 4"
    for _ in range(2):
        name = following(browser)
        hear(browser, press=True)
        for _ in range(3):
            browser.press("Tab", TAB)  # to the clip's player, past it to the ranks of both questions
            for _ in design.QUESTIONS:
                browser.press("Tab", TAB)
                browser.press(" ", 32, " ")
        browser.screenshot(tmp_path / "desktop-keys.png")
        reached = browser.evaluate("document.querySelectorAll('input:checked').length")
        assert reached > 0  # keys reach the ranks; each clip was given 1, and the last to ask has it
        for clip, rank in ((0, 3), (1, 1), (2, 2)):
            for question in design.QUESTIONS:
                browser.evaluate(f"document.querySelector(\"input[name='{question}-{clip}']\").focus()")
                for _ in range(3):
                    if browser.evaluate(f"chosen('{question}', {clip})?.value") != str(rank):
                        browser.press("ArrowRight", ARROW)
        browser.press("Enter", ENTER, "\r")
        browser.until(f"!document.getElementById('end').hidden || trial.id !== '{name}'")
    browser.until("!document.getElementById('end').hidden")
    assert book.done("anna") == {trial.id for trial in study.trials}
    assert [answer.ranks["fidelity"] for answer in book.all()][2:] == [[3, 1, 2]] * 2

    browser.open(server.url)
    start(browser, "anna")
    assert browser.evaluate("!document.getElementById('end').hidden")  # nothing is asked twice
    record = results.results(server.folder, resamples=50)
    assert (record["raters"], record["complete"], record["answers"]) == (1, 1, 4)
    results.write(server.folder, record)
    browser.open((server.folder / "results.html").as_uri())
    browser.screenshot(tmp_path / "results.png")
    browser.size(390, 844, mobile=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
