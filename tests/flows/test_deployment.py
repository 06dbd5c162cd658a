"""`prefect deployment run siren/full` for real, as docs/orchestration.md has it: a server, a work pool and a worker on
loopback, and a pipeline of three trivial stages."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PREFECT = [sys.executable, "-m", "prefect"]
PATIENCE = 180.0


@pytest.fixture
def environment(project: Path, tmp_path: Path) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        **os.environ,
        "PWD": str(project),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "1",
    }


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Start a process away from the project; all are ended afterwards, by force where they do not listen."""
    started: list[subprocess.Popen[bytes]] = []
    logs = []

    def begin(*arguments: str) -> None:
        log = open(tmp_path / f"{arguments[0]}.log", "wb")  # noqa: SIM115
        logs.append(log)
        started.append(
            subprocess.Popen(
                [*PREFECT, *arguments],
                cwd=tmp_path,
                env={**environment, "PWD": str(tmp_path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )

    yield begin
    for process in reversed(started):
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for log in logs:
        log.close()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline, f"nothing answers at {url}"
            time.sleep(0.5)


def test_the_documented_commands_run_the_pipeline(
    project: Path, environment: dict[str, str], start: Callable[..., None]
) -> None:
    shutil.copy(ROOT / "prefect.yaml", project)
    url = environment["PREFECT_API_URL"]
    start("server", "start", "--host", "127.0.0.1", "--port", url.split(":")[2].split("/")[0])
    wait_for(f"{url}/health")

    def prefect(*arguments: str) -> str:
        done = subprocess.run(
            [*PREFECT, *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    prefect("work-pool", "create", "local", "--type", "process")
    prefect("--no-prompt", "deploy", "--all")
    start("worker", "start", "--pool", "local", "--limit", "1")
    # The stages of this pipeline are those of ours that it has; a whole run asks for no names.
    watched = prefect("deployment", "run", "siren/full", "--watch", "--watch-timeout", str(int(PATIENCE)))
    assert "Completed" in watched, watched
    assert (project / "c").read_text() == "1\n"
    assert (project / "dvc.lock").is_file()
    names = prefect("deployment", "ls")
    for name in ("full", "data", "train", "align", "evaluate"):
        assert f"siren/{name}" in names
