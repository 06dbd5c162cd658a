"""Chromium without a window, driven through its DevTools protocol: as little of it as a test needs."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --hide-scrollbars --no-first-run "
    "--disable-sync --disable-component-update --mute-audio --remote-debugging-port=0"
)


class Browser:
    """One page. `evaluate` runs JavaScript; `press` and `click` are real input events."""

    def __init__(self, profile: Path) -> None:
        client = pytest.importorskip("websockets.sync.client")
        path = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
        if path is None:
            pytest.skip("no Chromium on this machine")
        command = [path, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert self.process.stderr is not None
        address = None
        for line in self.process.stderr:
            if found := re.search(r"listening on (ws://\S+)", line):
                address = found[1]
                break
        assert address, "Chromium ended before it listened"
        self.socket = client.connect(address, max_size=None, compression=None)
        self.numbers, self.session = itertools.count(1), None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            reply = json.loads(self.socket.recv(timeout=60))
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]

    def size(self, width: int, height: int, mobile: bool) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if mobile else 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < end, f"after {seconds} s still not: {script}"
            time.sleep(0.05)

    def press(self, key: str, code: int = 0, text: str = "") -> None:
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code or ord(key[0].upper())}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """A tap on the middle of an element, which has to be what lies there."""
        script = f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: "center", behavior: "instant"}}); const r = e.getBoundingClientRect();
            const x = r.x + r.width / 2, y = r.y + r.height / 2, top = document.elementFromPoint(x, y);
            return [x, y, e.contains(top) || (e.parentElement && e.parentElement.contains(top))]; }})()"""
        x, y, hit = self.evaluate(script)
        assert hit, f"something covers {selector}"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=20)
        assert self.process.stderr is not None
        self.process.stderr.close()
