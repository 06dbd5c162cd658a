"""The report's players in a real browser, where one is installed: they play, one at a time, in turn and blind."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from siren.evaluate.report import Report, render
from tests.evaluate import builders

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
SCRIPT = """
<script>
{
const said = [];
addEventListener("error", (event) => said.push("error: " + event.message));
addEventListener("securitypolicyviolation", (event) => said.push("blocked: " + event.blockedURI));
const buttons = [...document.querySelectorAll(".player")];
const sounds = buttons.map((button) => button.closest(".clip").querySelector("audio"));
sounds.forEach((sound) => { sound.loop = true; });  // a loaded machine must not let one end on its own
const on = (b, i) => b.classList.contains("playing") && !sounds[i].paused;
const playing = () => [...buttons.keys()].filter((i) => on(buttons[i], i));
const soon = () => new Promise((done) => setTimeout(done, 400));
(async () => {
  buttons[0].click(); await soon(); said.push("first: " + playing());
  buttons[1].click(); await soon(); said.push("second: " + playing());
  buttons[1].click(); await soon(); said.push("stopped: " + playing());
  document.querySelector("[data-play-all]").click(); await soon();
  sounds[0].dispatchEvent(new Event("ended")); await soon(); said.push("in turn: " + playing());
  document.querySelector("[data-blind]").click();
  said.push("blind: " + getComputedStyle(document.querySelector(".verdict")).visibility);
  document.querySelector("[data-blind]").click();
  const titles = [...document.querySelector(".cells").children].map((c) => c.querySelector("figcaption").textContent);
  said.push("revealed: " + titles);
  const pre = document.createElement("pre");
  pre.id = "said"; pre.textContent = said.join("\\n"); document.body.append(pre);
})();
}
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_players_play_one_at_a_time_in_turn_and_blind(tmp_path: Path) -> None:
    bare = {"metrics": None, "curves": {}, "analysis": None}
    page = tmp_path / "index.html"
    page.write_text(render(Report(**{**vars(builders.report()), **bare})).replace("</body>", SCRIPT), encoding="utf-8")
    assert BROWSER is not None
    command = [
        BROWSER,
        *FLAGS,
        "--autoplay-policy=no-user-gesture-required",
        "--virtual-time-budget=30000",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        page.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    found = re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, "the page's script did not come to its end"
    assert html.unescape(found[1]).splitlines() == [
        "first: 0",
        "second: 1",
        "stopped: ",
        "in turn: 1",
        "blind: hidden",
        "revealed: Real,Stage 1,Aligned",
    ]
