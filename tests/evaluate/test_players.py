"""The report's players in a real browser, where one is installed: they play, one at a time, in turn and blind."""

from pathlib import Path

import pytest

from siren.evaluate.report import Report, render
from tests.browser import Browser
from tests.evaluate import builders

WATCH = """
  window.said = [];
  addEventListener("error", (event) => said.push("error: " + event.message));
  addEventListener("securitypolicyviolation", (event) => said.push("blocked: " + event.blockedURI));
  window.buttons = [...document.querySelectorAll(".player")];
  buttons.forEach((button, i) => { button.dataset.number = i; });
  window.sounds = buttons.map((button) => button.closest(".clip").querySelector("audio"));
  sounds.forEach((sound) => { sound.loop = true; });  // a loaded machine must not let one end on its own
  window.on = (i) => buttons[i].classList.contains("playing") && !sounds[i].paused && sounds[i].currentTime > 0;
  window.heard = () => [...buttons.keys()].filter(on).join();
"""
TITLES = "[...document.querySelector('.cells').children].map((c) => c.querySelector('figcaption').textContent)"


@pytest.mark.slow
def test_players_play_one_at_a_time_in_turn_and_blind(tmp_path: Path) -> None:
    bare = {"metrics": None, "curves": {}, "analysis": None}
    page = tmp_path / "index.html"
    page.write_text(render(Report(**{**vars(builders.report()), **bare})), encoding="utf-8")
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(page.as_uri())
        browser.evaluate(WATCH)
        titles = browser.evaluate(TITLES)
        for button, playing in (("[data-number='0']", "0"), ("[data-number='1']", "1"), ("[data-number='1']", "")):
            browser.click(button)
            browser.until(f"heard() === '{playing}'")
        browser.click("[data-play-all]")
        browser.until("heard() === '0'")
        browser.evaluate("sounds[0].dispatchEvent(new Event('ended'))")
        browser.until("heard() === '1'")
        browser.evaluate("buttons[0].click(); buttons[1].click()")  # faster than a sound begins
        browser.until("heard() === '1'")
        browser.click("[data-blind]")
        assert browser.evaluate("getComputedStyle(document.querySelector('.verdict')).visibility") == "hidden"
        browser.click("[data-blind]")
        assert browser.evaluate(TITLES) == titles == ["Real", "Stage 1", "Aligned"]
        assert browser.evaluate("said") == []
    finally:
        browser.close()
