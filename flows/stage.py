"""A Prefect task that is one DVC stage: `dvc repro --single-item NAME`, with retries, a timeout and its output as log.

Another DVC process in the workspace (a person's `dvc repro`) is waited for: DVC itself gives up at once. A run that
is cancelled or times out takes the stage's whole process group with it; a half-done training continues from its
checkpoint when it is tried again.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from flows import graph
from siren.tracking import lineage

BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")  # how DVC says that another DVC is at work
BUSY_POLL_SECONDS = 5.0
SERVER_PATIENCE_SECONDS = 1800.0
GRACE_SECONDS = 10.0  # between asking a process group to end and ending it


@dataclass(frozen=True)
class Policy:
    """What happens around the stages of a phase: one growing delay for each retry; tags are for concurrency limits."""

    retry_delays_seconds: tuple[int, ...] = (10, 60)
    timeout_hours: float = 24.0
    tags: tuple[str, ...] = ()


class StageFailed(RuntimeError):
    """A stage ended with an error; the message holds the end of its output."""


def run_phase(phase: str, policy: Policy, stages: list[str] | None) -> None:
    """Run `stages` of a phase, or all of them, one after another in the order of DVC's graph."""
    root = Path.cwd()
    found = graph.read_graph(root)
    chosen = graph.select(found, [phase], None) if stages is None else stages
    for _, names in graph.schedule(found, chosen):
        for name in names:
            run = stage.with_options(
                name=name,
                task_run_name=f"{name} {revision(root)}",
                retries=len(policy.retry_delays_seconds),
                retry_delay_seconds=list(policy.retry_delays_seconds),
                tags=["siren", phase, *policy.tags],
            )
            run(name, policy.timeout_hours)


@task(cache_policy=NO_CACHE)
def stage(name: str, timeout_hours: float = 24.0) -> None:
    """Bring one stage up to date. Raises StageFailed with the end of the output, TimeoutError after `timeout_hours`."""
    logger = get_run_logger()
    deadline = time.monotonic() + timeout_hours * 3600
    while True:
        code, last = reproduce(name, Path.cwd(), logger.info, deadline)
        if code == 0:
            if flow_run.id is not None:
                wait_for_server(logger.warning)
            return
        if not any(words in line for line in last for words in BUSY):
            raise StageFailed(f"dvc repro {name} ended with code {code}:\n" + "\n".join(last))
        logger.warning("another dvc process holds what %s needs; trying again in %.0f s", name, BUSY_POLL_SECONDS)
        time.sleep(BUSY_POLL_SECONDS)


def wait_for_server(say: Callable[..., None], patience: float = SERVER_PATIENCE_SECONDS) -> None:
    """Return when Prefect's server answers: a state that cannot be reported would crash the run with its work done."""
    deadline = time.monotonic() + patience
    with get_client(sync_client=True) as client:
        while (error := client.api_healthcheck()) is not None and time.monotonic() < deadline:
            say("Prefect's server does not answer (%s); trying again", error)
            time.sleep(BUSY_POLL_SECONDS)


def reproduce(name: str, root: Path, say: Callable[[str], None], deadline: float) -> tuple[int, list[str]]:
    """Run DVC on one stage → its exit code and the last lines of its output, each of which went through `say`."""
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", name]
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        end_group(process)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), stop)
    timer.start()
    last: deque[str] = deque(maxlen=30)
    try:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if text := line.rstrip():
                    last.append(text)
                    say(text)
        code = process.wait()
    finally:
        timer.cancel()
        end_group(process)
    if late.is_set():
        raise TimeoutError(f"stage {name} was not done in its time and was stopped; it continues when tried again")
    return code, list(last)


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started, kindly at first; nothing if it has ended."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment() -> dict[str, str]:
    """The stage's environment: this installation's commands first, and the flow run as its pipeline execution."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "SIREN_PIPELINE": f"prefect-{flow_run.root_flow_run_id}"}


def run_name() -> str:
    """Name of a phase's run: the phase and the commit."""
    return f"{flow_run.flow_name} {revision(Path.cwd())}"


def revision(root: Path) -> str:
    """The short git commit, with a + where tracked files differ from it."""
    tags = lineage.git_tags(root)
    return tags.get("git.commit", "no-commit")[:7] + ("+" if tags.get("git.dirty") == "true" else "")
