"""What breaks in production, for real: processes are killed by their ids. docs/reliability.md has the table.

The pipeline has stages of seconds that count their runs: what was finished is never repeated, nothing is lost, and each
run ends in the state that is true of it.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.flows import servers
from tests.processes import PATIENCE, eventually, free_port
from tests.tracking.conftest import database, root  # noqa: F401

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated"),  # MLflow's own use of SQLAlchemy
]
ROOT = Path(__file__).resolve().parents[2]
SLOW = """\
import pathlib, time
with open("runs-segment", "a") as runs:
    runs.write("began\\n")
time.sleep({seconds})
pathlib.Path("b").write_text("1\\n")
with open("runs-segment", "a") as runs:
    runs.write("ended\\n")
"""
Prefect = Callable[..., str]


def counted(project: Path, stage: str) -> list[str]:
    path = project / f"runs-{stage}"
    return path.read_text().split() if path.exists() else []


def states(environment: dict[str, str]) -> list[str]:
    """The state of every run of the whole flow, in order of the alphabet."""
    body = {"flows": {"name": {"any_": ["siren"]}}}
    return sorted(run["state"]["name"] for run in servers.api(environment, "/flow_runs/filter", body))


def begin(environment: dict[str, str]) -> None:
    found = servers.api(environment, "/deployments/name/siren/full")
    servers.api(environment, f"/deployments/{found['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})


@pytest.fixture
def slow(project: Path) -> Path:
    """A pipeline whose second stage takes a quarter of a minute."""
    (project / "segment.py").write_text(SLOW.format(seconds=15))
    shutil.copy(ROOT / "prefect.yaml", project)
    return project


def deploy(prefect: Prefect) -> None:
    prefect("work-pool", "create", "local", "--type", "process")
    prefect("--no-prompt", "deploy", "--name", "full")


def test_a_worker_and_its_flow_that_are_killed_are_marked_and_the_next_run_repeats_nothing(
    slow: Path, environment: dict[str, str], start: servers.Start, prefect: Prefect
) -> None:
    servers.server(environment, start)
    deploy(prefect)
    worker = start("worker", "start", "--pool", "local")
    begin(environment)
    eventually(lambda: counted(slow, "segment") == ["began"], "the stage began")
    for process in [psutil.Process(worker.pid), *psutil.Process(worker.pid).children()]:
        process.kill()  # not the dvc that the flow started: it is on its own, and finishes its stage
    begin(environment)
    start("worker", "start", "--pool", "local")
    eventually(lambda: states(environment) == ["Completed", "Crashed"], "the second run is done")
    assert counted(slow, "segment") == ["began", "ended"]
    assert len(counted(slow, "fetch")) == 1
    assert (slow / "c").read_text() == "1\n"


def test_a_server_that_is_killed_and_comes_back_while_a_stage_ends_costs_the_run_nothing(
    slow: Path, environment: dict[str, str], start: servers.Start, prefect: Prefect
) -> None:
    process = servers.server(environment, start)
    deploy(prefect)
    start("worker", "start", "--pool", "local")
    begin(environment)
    eventually(lambda: counted(slow, "segment") == ["began"], "the stage began")
    for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        member.kill()
    eventually(lambda: counted(slow, "segment") == ["began", "ended"], "the stage ended without a server")
    time.sleep(5)
    servers.server(environment, start)
    eventually(lambda: states(environment) == ["Completed"], "the run is done")
    assert counted(slow, "segment") == ["began", "ended"]
    assert len(counted(slow, "fetch")) == 1
    assert (slow / "c").read_text() == "1\n"


def test_two_full_runs_at_once_do_the_work_once_and_both_complete(
    slow: Path, environment: dict[str, str], start: servers.Start, prefect: Prefect
) -> None:
    servers.server(environment, start)
    deploy(prefect)
    start("worker", "start", "--pool", "local", "--limit", "2")
    begin(environment)
    begin(environment)
    eventually(lambda: states(environment) == ["Completed"] * 2, "both runs are done")
    assert counted(slow, "segment") == ["began", "ended"]
    assert len(counted(slow, "fetch")) == 1
    assert "waiting for it to end" in "".join(path.read_text(errors="replace") for path in slow.parent.glob("*.log"))


# Without Prefect: DVC, stages and MLflow

STAGE = f"""\
import pathlib, sys, time
from siren import config, tracking
c = config.load({str(ROOT / "params.yaml")!r})
"""


def environment_of(root: Path, **more: str) -> dict[str, str]:  # noqa: F811
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


@pytest.fixture
def pipeline(root: Path) -> Path:  # noqa: F811
    """One stage that writes a file bit by bit, for ten seconds, and notes when it begins and ends."""
    (root / "stage.py").write_text(
        STAGE + "runs = open('runs-fetch', 'a', buffering=1)\n"
        "with tracking.stage('fetch', c) as run:\n"
        "    runs.write('began\\n')\n"
        "    with open('made', 'w', buffering=1) as made:\n"
        "        for step in range(10):\n"
        "            run.log(step, {'loss': float(step)})\n"
        "            made.write(f'{step}\\n')\n"
        "            time.sleep(1)\n"
        "runs.write('ended\\n')\n"
    )
    text = f"stages:\n  fetch:\n    cmd: {sys.executable} stage.py\n    deps: [stage.py]\n    outs: [made]\n"
    (root / "dvc.yaml").write_text(text)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    return root


def repro(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dvc", "repro"]
    return subprocess.Popen(
        command, cwd=folder, env=environment_of(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_stage_whose_dvc_is_killed_ends_too_and_the_next_one_has_the_files_to_itself(pipeline: Path) -> None:
    first = repro(pipeline)
    eventually(lambda: counted(pipeline, "fetch") == ["began"], "the stage began")
    (stage,) = (p for p in psutil.Process(first.pid).children(recursive=True) if "stage.py" in p.cmdline())
    first.send_signal(signal.SIGKILL)
    first.wait()  # a process that nobody waited for still has its id, and DVC goes by that
    second = repro(pipeline)
    said = second.communicate(timeout=PATIENCE)[0]
    assert second.returncode == 0, said
    assert not stage.is_running()
    assert counted(pipeline, "fetch") == ["began", "began", "ended"]  # the first never ended
    assert (pipeline / "made").read_text() == "".join(f"{step}\n" for step in range(10))
    first.communicate(timeout=10)


def test_a_second_dvc_in_a_workspace_says_why_not_and_harms_nothing(pipeline: Path) -> None:
    first = repro(pipeline)
    eventually(lambda: counted(pipeline, "fetch") == ["began"], "the stage began")
    second = repro(pipeline)
    said = second.communicate(timeout=PATIENCE)[0]
    assert second.returncode != 0
    assert "Unable to acquire lock" in said or "is busy" in said
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 0
    assert counted(pipeline, "fetch") == ["began", "ended"]


def test_a_stage_started_by_hand_waits_for_the_one_at_work(pipeline: Path) -> None:
    first = repro(pipeline)
    eventually(lambda: counted(pipeline, "fetch") == ["began"], "the stage began")
    command = [sys.executable, "stage.py"]
    second = subprocess.run(command, env=environment_of(pipeline), capture_output=True, text=True, timeout=120)
    assert "the stage fetch is at work in this workspace already" in second.stderr
    assert second.returncode == first.wait(10) == 0
    assert counted(pipeline, "fetch") == ["began", "ended", "began", "ended"]
    first.communicate()


def test_a_full_disk_fails_the_stage_says_so_and_leaves_what_was_whole(root: Path) -> None:  # noqa: F811
    """On a file system of two megabytes, in a mount namespace of its own."""
    code = STAGE + (
        "from siren import shards\nimport pyarrow as pa, os\n"
        "pathlib.Path('small').mkdir(exist_ok=True); os.chdir('small')\n"
        "from siren.tracking import watch\nwatch.FLOOR_BYTES = 0\n"
        "with tracking.stage('fetch', c) as run:\n"
        "    run.log(1, {'loss': 1.0})\n"
        "    shards.write_table(pathlib.Path('whole.parquet'), pa.table({'a': [1]}))\n"
        "    shards.write_table(pathlib.Path('large.parquet'), pa.table({'a': [os.urandom(4 << 20)]}))\n"
    )
    (root / "fill.py").write_text(code)
    (root / "small").mkdir()
    inside = f"mount -t tmpfs -o size=2m tmpfs small && {sys.executable} fill.py; echo code $?; "
    inside += "ls -A small; cat small/.siren/runs/*/run.json small/.siren/runs/*/stage.log"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside]
    if subprocess.run([*command[:-3], "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces for this user")
    done = subprocess.run(command, cwd=root, env=environment_of(root), capture_output=True, text=True, timeout=120)
    assert "code 1" in done.stdout, done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    listed = done.stdout.split("\n")
    assert "whole.parquet" in listed
    assert "large.parquet" not in listed


def test_a_stage_is_not_begun_without_room_for_what_it_wrote_last_time(root: Path) -> None:  # noqa: F811
    from siren import config, tracking
    from siren.tracking import records

    (root / "dvc.lock").write_text(f"stages:\n  fetch:\n    outs: [{{path: a, md5: b, size: {10**18}}}]\n")
    with (
        pytest.raises(OSError, match=r"the stage fetch needs about 2,0[0-9,]+ bytes in .*, and [0-9,]+ are free"),
        tracking.stage("fetch", config.load(ROOT / "params.yaml")),
    ):
        pass
    assert records.folders(root) == []


OUTAGE_SECONDS = float(os.environ.get("SIREN_TEST_OUTAGE_SECONDS", "15"))  # of the MLflow server, in mid-run


def test_an_mlflow_server_that_is_killed_in_mid_run_for_a_while_misses_nothing_and_slows_nothing(
    root: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stage and the exporter are processes of their own; the server dies after the first points have arrived, and
    is back before the stage ends. A report costs the stage as little meanwhile as before."""
    from siren.tracking import records, store

    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    (root / "stage.py").write_text(
        STAGE + "with tracking.stage('fetch', c) as run:\n"
        "    step = 0\n"
        "    while not pathlib.Path('enough').exists():\n"
        "        began, spent = time.time(), time.process_time()\n"
        "        for _ in range(20):\n"
        "            run.log(step, {'loss': float(step)})\n"
        "            step += 1\n"
        "        print(began, time.process_time() - spent, flush=True)\n"
        "        time.sleep(0.5)\n"
    )

    def server() -> subprocess.Popen[bytes]:
        return servers.mlflow(port, root, f"sqlite:///{root / store.DATABASE}", "files")

    def sent() -> int:
        return sum(records.read_state(folder)["offset"] for folder in records.folders(root))

    running = server()
    told = environment_of(root, SIREN_EXPORT="1")
    stage = subprocess.Popen([sys.executable, "stage.py"], env=told, stdout=subprocess.PIPE, text=True)
    try:
        eventually(lambda: sent() > 0, "points arrived")
        servers.kill(running)
        down = time.time()
        time.sleep(OUTAGE_SECONDS)
        before, up = sent(), time.time()
        running = server()
        eventually(lambda: sent() > before, "points arrived again while the stage is at work")
        (root / "enough").touch()
        said = stage.communicate(timeout=120)[0]
        assert stage.returncode == 0
        (folder,) = records.folders(root)
        eventually(lambda: records.caught_up(folder), "the gap was filled by the exporter that was there all the time")
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)["metrics"]]
        assert losses == list(range(len(losses)))
        assert len(losses) > 10 * OUTAGE_SECONDS
        run = records.read_state(folder)["mlflow_run"]
        client = store.connect(store.address(root))
        points = client.get_metric_history(run, "loss")
        assert sorted(p.step for p in points) == losses
        assert client.get_run(run).info.status == "FINISHED"
        spent = [(float(began), float(seconds)) for began, seconds in (line.split() for line in said.splitlines())]
        meanwhile = statistics.median(seconds for began, seconds in spent if down < began < up)
        assert meanwhile < 0.005  # CPU seconds of 20 reports: one percent of the half second between them
    finally:
        (root / "enough").touch()
        servers.kill(running)
        for process in psutil.process_iter(["cmdline"]):
            if (process.info["cmdline"] or [])[2:4] == ["siren.tracking.export", str(root)]:
                process.terminate()
        stage.communicate(timeout=60)
