"""The flow `siren`: the whole pipeline, or some phases or stages of it, in the order of DVC's graph.

Import it as a module (`python -m flows.siren`, entrypoint `flows.siren:siren`): run as a script, this file's folder
would come first on the path, and this file would hide the package `siren`.
"""

import subprocess
import sys
from pathlib import Path

import yaml
from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows import graph, reporting, workspace
from flows.align import align
from flows.collect import collect
from flows.encode import encode
from flows.evaluate import evaluate
from flows.filter import filter
from flows.stage import revision
from flows.train import train

PHASES = {flow.name: flow for flow in (collect, filter, encode, train, align, evaluate)}


def _run_name() -> str:
    root = Path.cwd()
    scale = (flow_run.parameters or {}).get("scale") or _scale(root / "params.yaml")
    return f"{scale} {revision(root)}"


def _scale(params: Path) -> str:
    """The scale that a params.yaml was composed for; the file's name where it says none."""
    found = yaml.safe_load(params.read_text()) if params.is_file() else None
    return str((found or {}).get("scale", params.name))


@flow(
    name="siren",
    flow_run_name=_run_name,
    on_failure=[reporting.failed],
    on_crashed=[reporting.failed],
    on_cancellation=[reporting.failed],
)
def siren(
    scale: str | None = None, phases: list[str] | None = None, stages: list[str] | None = None, jobs: int = 1
) -> None:
    """Bring the pipeline up to date. What is up to date already costs a second.

    scale: composes params.yaml from conf/ first; null leaves it as it is. phases, stages: only these (what they
    depend on is taken as it is); null for all. jobs: so many stages of a phase at once, where none needs another.
    Runs in one workspace wait for each other.
    """
    logger = get_run_logger()
    root = Path.cwd()
    graph.select({}, phases, None)  # an unknown phase is an error before the wait
    own = str(flow_run.id)
    with workspace.exclusive(root, logger.info), workspace.signed(root, own) as before:
        if before:
            logger.warning("run %s ended without a word; it is marked as crashed", before)
            reporting.bury(before)
        if scale is not None:
            compose(scale, root)
        found = graph.read_graph(root)  # it depends on the settings, which the run before may have changed
        for phase, names in graph.schedule(found, graph.select(found, phases, stages)):
            PHASES[phase](names, jobs)
        reporting.publish(root, own)


def compose(scale: str, root: Path) -> None:
    """Write params.yaml for a scale. Raises ValueError with what `siren params` says is wrong."""
    command = [sys.executable, "-m", "siren.cli", "params", scale]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip())


if __name__ == "__main__":
    siren()
