"""What the flow costs over plain `dvc repro`: the whole pipeline once each way, in fresh clones of HEAD.

    PYTHONPATH=. python bench/orchestration.py --scale demo --keep DIR     # half an hour
    PYTHONPATH=. python bench/orchestration.py --scale tiny                # some minutes

One way is `dvc repro`; the other is `prefect deployment run siren/full` with a server and a worker on loopback, as
docs/orchestration.md has it. `seconds` counts from the command to the state Completed (the flow: from when it is asked
for, so that the worker's poll and the start of its process are in it); the clock is the wall's, so run nothing beside
it. A stage's seconds are those from the end of the stage before to its own end: start-up, hashing and the moving of
outputs included. `overhead_seconds_per_stage` and `overhead_percent` are of the two totals; `runs_seconds` is what the
stages themselves took, to tell a machine that was busier the second time from an overhead. `cpu_seconds` is what the
server, the worker and the flow's process took of the machine while stages ran.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from tests.flows import servers
from tests.processes import eventually, free_port

POLL_SECONDS = 10  # looking whether it is done costs the server CPU time as well
ROOT = Path(__file__).resolve().parents[1]


def clone(folder: Path, scale: str) -> Path:
    """HEAD in a folder of its own, at `scale`, with nothing run."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    subprocess.run(
        [sys.executable, "-m", "siren.cli", "params", scale], cwd=folder, env=environment(folder), check=True
    )
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of a process in a clone: this installation's commands, the clone's code, MLflow beside it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    own = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "SIREN_PIPELINE")}
    return {**own, "PATH": path, "PWD": str(folder), "PYTHONPATH": str(folder), **more}


def plain(folder: Path) -> float:
    """Seconds of `dvc repro`."""
    with open(folder.with_suffix(".log"), "w") as log:
        began = time.time()
        command = [sys.executable, "-m", "dvc", "repro"]
        subprocess.run(command, cwd=folder, env=environment(folder), stdout=log, stderr=log, check=True)
    return time.time() - began


def flow(folder: Path) -> tuple[float, float, dict[str, Any]]:
    """When the deployment `siren/full` was asked for, its seconds, and what they and the processor were spent on."""
    told = environment(
        folder,
        PREFECT_HOME=str(folder.with_suffix(".prefect")),
        PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        DO_NOT_TRACK="1",
    )
    started: list[subprocess.Popen[bytes]] = []
    cpu: dict[str, float] = {}

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        with open(folder.with_suffix(f".{arguments[0]}.log"), "w") as log:
            command = [*servers.PREFECT, *arguments]
            started.append(
                subprocess.Popen(command, cwd=folder, env=told, stdout=log, stderr=log, start_new_session=True)
            )
        return started[-1]

    def prefect(*arguments: str) -> None:
        subprocess.run([*servers.PREFECT, *arguments], cwd=folder, env=told, check=True, stdout=subprocess.DEVNULL)

    try:
        servers.server(told, begin)
        prefect("work-pool", "create", "local", "--type", "process")
        prefect("--no-prompt", "deploy", "--name", "full")
        begin("worker", "start", "--pool", "local", "--limit", "1")
        eventually(lambda: bool(servers.api(told, "/work_pools/local/workers/filter", {})), "a worker")
        asked = servers.api(told, "/deployments/name/siren/full")
        began = time.time()
        made = servers.api(told, f"/deployments/{asked['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
        while (run := servers.api(told, f"/flow_runs/{made['id']}"))["state"]["type"] not in servers.FINAL:
            cpu = {**cpu, **taken(started)}
            time.sleep(POLL_SECONDS)
        seconds = parsed(run["end_time"]) - began
        if run["state"]["type"] != "COMPLETED":
            raise RuntimeError(f"the flow run ended as {run['state']['name']}: {run['state']['message']}")
        waited = parsed(run["start_time"]) - parsed(made["created"])
        return (
            began,
            seconds,
            {
                "run_seconds": round(run["total_run_time"], 1),
                "start_seconds": round(waited, 1),
                "cpu_seconds": cpu,
            },
        )
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                servers.kill(process)


def taken(started: list["subprocess.Popen[bytes]"]) -> dict[str, float]:
    """CPU seconds so far of the server, the worker, and the process that the worker runs the flow in."""
    found = {}
    for process in started:
        own = psutil.Process(process.pid)
        role = str(process.args[3]) if isinstance(process.args, list) else str(process.args)
        children = own.children() if role == "worker" else []
        for name, one in [(role, own), *(("flow", child) for child in children)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found[name] = round(one.cpu_times().user + one.cpu_times().system, 1)
    return found


def parsed(moment: str) -> float:
    """Seconds since 1970 of a moment as Prefect's server writes it."""
    return datetime.fromisoformat(moment).timestamp()


def stages(folder: Path, began: float) -> dict[str, tuple[float, float]]:
    """Stage → seconds since the end of the one before it, and seconds of its own run, out of the local records."""
    records = [json.loads(path.read_text()) for path in (folder / ".siren" / "runs").glob("*/run.json")]
    found, last = {}, began
    for record in sorted(records, key=lambda record: record["ended"]):
        ended = record["ended"] / 1000
        found[record["name"]] = ended - last, ended - record["started"] / 1000
        last = ended
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--keep", type=Path, help="a folder for the two clones; by default they are deleted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = (options.keep or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        first, second = clone(work / "plain", options.scale), clone(work / "flow", options.scale)
        before = time.time()
        alone = plain(first)
        one = stages(first, before)
        before, whole, more = flow(second)
        two = stages(second, before)
        if set(one) != set(two):
            raise RuntimeError(f"the two ways ran different stages: {sorted(set(one) ^ set(two))}")
        for name, (seconds, own) in one.items():
            print(
                f"{name:12} plain {seconds:7.1f} (run {own:6.1f})   flow {two[name][0]:7.1f} (run {two[name][1]:6.1f})"
            )
        runs = [round(sum(own for _, own in each.values()), 1) for each in (one, two)]
        figures = {
            "scale": options.scale,
            "stages": len(one),
            "plain_seconds": round(alone, 1),
            "flow_seconds": round(whole, 1),
            **more,
            "runs_seconds": runs,
            "overhead_seconds_per_stage": round((whole - alone) / len(one), 2),
            "overhead_percent": round(100 * (whole - alone) / alone, 1),
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
