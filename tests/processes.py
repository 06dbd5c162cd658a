"""Other processes that tests start: free ports, patience, and commands in a copy or a clone of the project."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("siren", "conf", "tests", "weights", "pyproject.toml", "params.yaml", "dvc.yaml")
PATIENCE = 240.0  # seconds, on a busy machine
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is behind no proxy


def free_port() -> int:
    """Of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(holds: Callable[[], bool], what: str = "what was waited for", seconds: float = PATIENCE) -> None:
    """Return when it holds; raises AssertionError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.1)


def wait_for(url: str, process: "subprocess.Popen[bytes] | None" = None, log: Path | None = None) -> None:
    """Return when `url` answers; AssertionError, with the end of `log`, when it does not or `process` has ended."""

    def answers() -> bool:
        assert process is None or process.poll() is None, f"{process.args} ended with code {process.returncode}"
        try:
            with _direct.open(url, timeout=5):
                return True
        except OSError:
            return False

    try:
        eventually(answers, f"an answer at {url}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()[-4000:] if log else ''}") from None


def copy(folder: Path) -> Path:
    """The code of the working tree, in place of what `folder` has of it."""
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(ROOT / name, folder / name)  # compiled files too: they save seconds
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def clone(folder: Path) -> Path:
    """The same as a clone: DVC wants a repository."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return copy(folder)


def environment(folder: Path) -> dict[str, str]:
    """That of commands in a copy: its code, this installation's commands, no exporter."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PYTHONPATH": str(folder), "PATH": path, "SIREN_EXPORT": "0", "OMP_NUM_THREADS": "1"}


def run(folder: Path, *command: str, right: tuple[int, ...] = (0,)) -> str:
    """What a command prints; it has to end with a code that is `right`."""
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode in right, f"{' '.join(command)}\n{done.stdout[-4000:]}"
    return done.stdout
