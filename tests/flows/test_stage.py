"""A task is one DVC stage: what happens when it works, fails, hangs, or finds DVC at work already."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from prefect.logging import disable_run_logger

from flows import reporting, workspace
from flows import siren as whole
from flows import stage as stages
from tests.processes import eventually

SOON = 60.0
PATIENT = """\
import pathlib, time

pathlib.Path("began").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.05)
pathlib.Path("b").write_text("slow")
"""


def later(seconds: float = SOON) -> float:
    return time.monotonic() + seconds


def test_a_stage_runs_and_its_output_goes_to_the_log(project: Path) -> None:
    said: list[str] = []
    code, last = stages.reproduce("fetch", project, said.append, later())
    assert code == 0
    assert "fetching" in said
    assert last == said[-30:]
    assert (project / "a").read_text() == "1\n"


def test_a_stage_that_is_up_to_date_does_not_run_again(project: Path) -> None:
    for _ in range(2):
        with disable_run_logger():
            stages.stage.fn("fetch")
    assert len((project / "runs-fetch").read_text().split()) == 1


def test_a_stage_that_fails_says_why(project: Path) -> None:
    (project / "a").write_text("1\n")
    (project / "segment.py").write_text("raise SystemExit('the moon is in the way')")
    with disable_run_logger(), pytest.raises(stages.StageFailed, match="the moon is in the way"):
        stages.stage.fn("segment")


def test_a_stage_that_takes_too_long_is_stopped(project: Path) -> None:
    with pytest.raises(TimeoutError, match="fetch was not done in its time"):
        stages.reproduce("fetch", project, lambda line: None, later(0))
    assert not (project / "a").exists()


def test_a_run_that_is_cancelled_takes_everything_that_the_stage_started_with_it(project: Path) -> None:
    (project / "a").write_text("1\n")
    (project / "segment.py").write_text("import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(60)\n")
    seen: list[int] = []

    def cancel(line: str) -> None:
        if line.startswith("pid "):
            seen.append(int(line.split()[1]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.reproduce("segment", project, cancel, later())

    def gone() -> bool:  # a killed process may take a moment
        try:
            return bool(psutil.Process(seen[0]).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    eventually(gone, "the stage's process is gone", 10)  # by itself it would live for a minute


def test_a_workspace_where_dvc_is_at_work_is_waited_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "a").write_text("1\n")
    (project / "segment.py").write_text(PATIENT)
    monkeypatch.setattr(stages, "BUSY_POLL_SECONDS", 0.2)
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "segment"]
    other = subprocess.Popen(command, cwd=project, env=stages.environment(), stdout=subprocess.DEVNULL)
    while not (project / "began").exists():
        time.sleep(0.05)
    seen: list[str] = []
    logger = logging.getLogger("test.stage")

    def warn(text: str, *values: object) -> None:
        seen.append(text % values)
        (project / "go").touch()

    monkeypatch.setattr(logger, "warning", warn)
    monkeypatch.setattr(stages, "get_run_logger", lambda: logger)
    stages.stage.fn("segment")
    assert other.wait() == 0
    assert (project / "b").read_text() == "slow"
    assert "another dvc process holds what segment needs" in seen[0]


def test_the_stage_finds_the_commands_of_this_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    assert stages.environment()["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


PER_TRANSFORMER = """\
stages:
  stage1:
    foreach: ${ks}
    do:
      cmd: echo ${item} > s${item}
      outs:
      - s${item}
"""


@pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")  # DVC's own use
def test_a_run_that_waited_takes_the_stages_of_the_settings_that_it_finds_then(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "dvc.yaml").write_text(PER_TRANSFORMER)
    (project / "params.yaml").write_text("ks: [0, 1]")
    ran: list[list[str]] = []

    @contextmanager
    def waited(root: Path, say: Callable[[str], None]) -> Iterator[None]:
        (root / "params.yaml").write_text("ks: [0, 1, 2]")  # the run before composed another scale
        (root / ".siren").mkdir()
        yield

    monkeypatch.setattr(workspace, "exclusive", waited)
    monkeypatch.setattr(reporting, "publish", lambda root, run: None)
    monkeypatch.setitem(whole.PHASES, "train", lambda names, jobs: ran.append(names))
    with disable_run_logger():
        with pytest.raises(ValueError, match="no phase trian"):
            whole.siren.fn(phases=["trian"])
        assert not (project / ".siren").exists()  # it did not wait
        whole.siren.fn()
    assert ran == [["stage1@0", "stage1@1", "stage1@2"]]


def test_runs_in_one_workspace_wait_for_each_other(tmp_path: Path) -> None:
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with workspace.exclusive(tmp_path, said.append, poll_seconds=0.05):
            order.append("second")

    with workspace.exclusive(tmp_path, said.append):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert len(said) == 1
    assert f"pid {os.getpid()}" in said[0]
