"""Prefect's server, worker and commands as real processes on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import PATIENCE, free_port, wait_for

PREFECT = [sys.executable, "-m", "prefect"]
TRIES = 10
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")  # types of states that a run ends in
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def environment(project: Path, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PWD": str(project),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "1",
    }


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start a Prefect process away from the project; all are ended afterwards, by force where they do not listen."""
    started: list[subprocess.Popen[bytes]] = []
    logs = []

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        log = open(tmp_path / f"{arguments[0]}.log", "ab")  # noqa: SIM115
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

        return started[-1]

    yield begin
    for process in reversed(started):
        if process.poll() is not None:
            continue
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for log in logs:
        log.close()


def mlflow(port: int, folder: Path, backend: str, artifacts: str) -> subprocess.Popen[bytes]:
    """MLflow's server in `folder`, with its artifacts behind it; returns when it answers. `kill` ends it."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", backend, "--artifacts-destination", artifacts]
    more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "server.log", "a") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **more}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
    except AssertionError:
        kill(process)
        raise
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    """At once, with all that it started in its session."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def api(environment: dict[str, str], path: str, body: dict[str, Any] | None = None) -> Any:
    """One request to Prefect's server (POST with a body, else GET) → its answer.

    Its database may be locked for a moment (503): asked again then, as Prefect's own client does.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{environment['PREFECT_API_URL']}{path}", data, {"Content-Type": "application/json"}
    )
    tries = 0
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            tries += 1
            if error.code != 503 or tries == TRIES:
                raise
            time.sleep(1)


def port(environment: dict[str, str]) -> str:
    return environment["PREFECT_API_URL"].split(":")[2].split("/")[0]


def server(environment: dict[str, str], start: Start) -> subprocess.Popen[bytes]:
    """Prefect's server; returns when it answers."""
    process = start("server", "start", "--host", "127.0.0.1", "--port", port(environment))
    wait_for(f"{environment['PREFECT_API_URL']}/health")
    return process


@pytest.fixture
def prefect(project: Path, environment: dict[str, str]) -> Callable[..., str]:
    """A command of Prefect in the project → its output; it has to work."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*PREFECT, *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
