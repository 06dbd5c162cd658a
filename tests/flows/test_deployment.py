"""`prefect deployment run siren/full` for real, as docs/orchestration.md has it: a server, a work pool and a worker on
loopback, and a pipeline of three trivial stages."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows import servers

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def test_the_documented_commands_run_the_pipeline(
    project: Path, environment: dict[str, str], start: servers.Start, prefect: Callable[..., str]
) -> None:
    shutil.copy(ROOT / "prefect.yaml", project)
    servers.server(environment, start)
    prefect("work-pool", "create", "local", "--type", "process")
    prefect("--no-prompt", "deploy", "--all")
    prefect("concurrency-limit", "create", "download", "1")
    start("worker", "start", "--pool", "local", "--limit", "1")
    # The stages of this pipeline are those of ours that it has; a whole run asks for no names.
    watched = prefect("deployment", "run", "siren/full", "--watch", "--watch-timeout", str(int(servers.PATIENCE)))
    assert "Completed" in watched, watched
    assert (project / "c").read_text() == "1\n"
    assert (project / "dvc.lock").is_file()
    names = prefect("deployment", "ls")
    for name in ("full", "data", "train", "align", "evaluate", "nightly"):
        assert f"siren/{name}" in names
    # Asked for as JSON: the table of `prefect artifact ls` breaks long keys.
    assert "siren-links" in {found["key"] for found in servers.api(environment, "/artifacts/filter", {})}
    assert "0 2 * * *" in prefect("deployment", "inspect", "siren/nightly")
    # The same deployment for a cluster, as far as it goes without one.
    prefect("work-pool", "create", "cluster", "--type", "kubernetes")
    variables = '{"image": "example/siren:1", "env": {"SIREN_HOME": "/siren"}}'
    prefect("--no-prompt", "deploy", "--name", "full", "--pool", "cluster", "--job-variable", variables)
    told = json.loads(prefect("deployment", "inspect", "siren/full", "--output", "json"))
    assert told["work_pool_name"] == "cluster"
    assert told["job_variables"]["env"]["SIREN_HOME"] == "/siren"
