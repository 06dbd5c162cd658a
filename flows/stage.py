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
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows import graph
from siren.tracking import lineage

BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")  # how DVC says that another DVC is at work
BUSY_POLL_SECONDS = 5.0
SERVER_PATIENCE_SECONDS = 1800.0
GRACE_SECONDS = 10.0  # between asking a process group to end and ending it
_at_work: set["subprocess.Popen[str]"] = set()  # of several stages at once: for the thread that hears of a cancellation
_cancelled = threading.Event()


@dataclass(frozen=True)
class Policy:
    """What happens around the stages of a phase: one growing delay for each retry; tags are for concurrency limits."""

    retry_delays_seconds: tuple[int, ...] = (10, 60)
    timeout_hours: float = 24.0
    tags: tuple[str, ...] = ()


class StageFailed(RuntimeError):
    """A stage ended with an error; the message holds the end of its output."""


def run_phase(phase: str, policy: Policy, stages: list[str] | None, jobs: int = 1) -> None:
    """Run `stages` of a phase, or all of them, in the order of DVC's graph, up to `jobs` at a time.

    One that fails does not stop those beside it; what comes after them is not begun. Raises ValueError for no jobs.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; at least one stage has to run at a time")
    _cancelled.clear()
    root = Path.cwd()
    found = graph.read_graph(root)
    chosen = graph.select(found, [phase], None) if stages is None else stages
    names = [name for _, run in graph.schedule(found, chosen) for name in run]

    def prepared(name: str) -> Any:
        return stage.with_options(
            name=name,
            task_run_name=f"{name} {revision(root)}",
            retries=len(policy.retry_delays_seconds),
            retry_delay_seconds=[*policy.retry_delays_seconds],
            retry_condition_fn=lambda *_: not _cancelled.is_set(),
            tags=["siren", phase, *policy.tags],
        )

    if jobs == 1:
        for name in names:
            prepared(name)(name, policy.timeout_hours, jobs)
        return
    for wave in graph.waves(found, names):
        pool: ThreadPoolTaskRunner[None]
        with ThreadPoolTaskRunner(max_workers=jobs) as pool:
            limits = {"timeout_hours": policy.timeout_hours, "jobs": jobs}
            try:
                runs: list[PrefectFuture[None]]
                runs = [pool.submit(prepared(name), {"name": name, **limits}) for name in wave]
                wait(runs)
            except BaseException:  # a cancelled run hears of it here, and the stages are in other threads
                _cancelled.set()
                for process in list(_at_work):
                    end_group(process)
                raise
        for run in runs:
            run.result()


@task(cache_policy=NO_CACHE)
def stage(name: str, timeout_hours: float = 24.0, jobs: int = 1) -> None:
    """Bring one stage up to date, beside others if `jobs` share the machine.

    Raises StageFailed with the end of the output, TimeoutError after `timeout_hours`.
    """
    logger = get_run_logger()
    deadline = time.monotonic() + timeout_hours * 3600
    while True:
        code, last = reproduce(name, Path.cwd(), logger.info, deadline, jobs)
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


def reproduce(
    name: str, root: Path, say: Callable[[str], None], deadline: float, jobs: int = 1
) -> tuple[int, list[str]]:
    """Run DVC on one stage → its exit code and the last lines of its output, each of which went through `say`."""
    if _cancelled.is_set():
        raise StageFailed(f"the run was cancelled before {name} could be begun")
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", name]
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment(jobs),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    _at_work.add(process)
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
        _at_work.discard(process)
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


def environment(jobs: int = 1) -> dict[str, str]:
    """The stage's environment: this installation's commands first, and the flow run as its pipeline execution.

    Each of several stages at once has its share of the cores, unless OMP_NUM_THREADS says otherwise.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    return {**share, **os.environ, "PATH": path, "SIREN_PIPELINE": f"prefect-{flow_run.root_flow_run_id}"}


def run_name() -> str:
    """Name of a phase's run: the phase and the commit."""
    return f"{flow_run.flow_name} {revision(Path.cwd())}"


def revision(root: Path) -> str:
    """The short git commit, with a + where tracked files differ from it."""
    tags = lineage.git_tags(root)
    return tags.get("git.commit", "no-commit")[:7] + ("+" if tags.get("git.dirty") == "true" else "")
