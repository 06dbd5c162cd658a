"""What a run leaves in Prefect for people: its figures and links when it ends well, and what failed when it does not.

`SIREN_ON_FAILURE` is a shell command that is run as well when a run fails, crashes or is cancelled, with SIREN_RUN,
SIREN_STATE and SIREN_MESSAGE in its environment: a mail, a message to a chat, a page to whoever is on call.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from siren.tracking import card, records

METRICS, REPORT = Path("reports/metrics.json"), Path("reports/index.html")
UI = "http://127.0.0.1:5000"  # where docs/tracking.md starts the MLflow UI on a database file


def publish(root: Path, run: UUID | str) -> None:
    """Artifacts `siren-metrics` and `siren-links` of a run that ended well."""
    if (root / METRICS).is_file():
        _artifact("siren-metrics", card.figures(json.loads((root / METRICS).read_text())), run)
    _artifact("siren-links", "\n".join(f"- {link}" for link in links(root, run)), run)


def links(root: Path, run: UUID | str) -> list[str]:
    """Markdown links to the run in MLflow and to the report, as far as they exist."""
    found = []
    if (root / REPORT).is_file():
        path = (root / REPORT).resolve()  # written out, too: browsers follow no link from a server's page to a file
        found.append(f"[report with players]({path.as_uri()}): `{path}`")
    note = records.pipeline_note(root, f"prefect-{run}")
    if note is None:
        found.append(f"MLflow: tag `pipeline` is `prefect-{run}`, once a stage had work and its record was sent")
    else:
        base = note["store"].rstrip("/") if note["store"].startswith("http") else UI
        place = f"{base}/#/experiments/{note.get('experiment_id', 0)}/runs/{note['mlflow_run']}"
        found.append(f"[run in MLflow]({place})")
    return found


def failed(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """The hook for failed, crashed and cancelled runs: the artifact `siren-failure`, and SIREN_ON_FAILURE."""
    message = state.message or ""
    text = f"**{flow_run.name}**: {state.name}\n\n```\n{message[-4000:]}\n```\n\nWhat each stage printed: "
    text += (
        "`siren track log STAGE`. Run it again when the cause is gone: what was finished is skipped, and a training "
    )
    try:
        _artifact("siren-failure", text + "continues from its checkpoint.", flow_run.id)
    except Exception as error:  # a server that is gone may be why the run failed; people are told all the same
        print(f"no artifact siren-failure: {error}")
    if command := os.environ.get("SIREN_ON_FAILURE"):
        told = {"SIREN_RUN": flow_run.name or "", "SIREN_STATE": state.name or "", "SIREN_MESSAGE": message[:10000]}
        subprocess.run(command, shell=True, env={**os.environ, **told}, timeout=60, check=False)


def bury(run: str) -> None:
    """Mark a run whose process died without a word, its subflows and their tasks as crashed.

    Whoever holds the workspace's lock may say so: the system took it from that process.
    """
    state: State[Any] = Crashed(
        message="the process of this run ended without a word (killed?); found by the next run here"
    )
    with get_client(sync_client=True) as client:
        inside = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[UUID(run)]))
        try:
            client.read_flow_run(UUID(run))
        except ObjectNotFound:  # of another server: a temporary one, or one whose database was replaced
            return
        flows = [UUID(run), *(found.id for found in client.read_flow_runs(flow_run_filter=inside))]
        tasks = client.read_task_runs(task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=flows)))
        for task in tasks:
            if task.state is not None and not task.state.is_final():
                client.set_task_run_state(task.id, state, force=True)
        for flow in flows:
            current = client.read_flow_run(flow).state
            if current is None or not current.is_final():
                client.set_flow_run_state(flow, state, force=True)


def _artifact(key: str, text: str, run: UUID | str) -> None:
    with get_client(sync_client=True) as client:
        client.create_artifact(ArtifactCreate(key=key, type="markdown", data=text, flow_run_id=UUID(str(run))))
