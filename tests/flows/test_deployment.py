"""`prefect deployment run siren/full` for real, as docs/orchestration.md has it: a server, a work pool and a worker on
loopback, and a pipeline of three trivial stages."""

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows import servers
from tests.processes import PATIENCE

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
    watched = prefect("deployment", "run", "siren/full", "--watch", "--watch-timeout", str(int(PATIENCE)))
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
    job = str(ROOT / "flows" / "kubernetes.json")
    prefect("work-pool", "create", "cluster", "--type", "kubernetes", "--base-job-template", job)
    variables = '{"image": "example/siren:1", "env": {"SIREN_HOME": "/siren", "PYTHONPATH": "/siren"}}'
    prefect("--no-prompt", "deploy", "--name", "full", "--pool", "cluster", "--job-variable", variables)
    told = json.loads(prefect("deployment", "inspect", "siren/full", "--output", "json"))
    assert told["work_pool_name"] == "cluster"
    assert told["job_variables"]["env"]["SIREN_HOME"] == "/siren"


def test_the_job_of_a_cluster_is_one_that_prefect_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """flows/kubernetes.json, filled in and checked by Prefect's own worker for Kubernetes, without a cluster."""
    worker = pytest.importorskip("prefect_kubernetes.worker")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    template = json.loads((ROOT / "flows" / "kubernetes.json").read_text())
    given = {"image": "example/siren:1", "gpus": 2, "env": {"SIREN_HOME": "/siren"}}
    names = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert names == set(template["variables"]["properties"])
    made = asyncio.run(
        worker.KubernetesWorkerJobConfiguration.from_template_and_values(template, given, client=object())
    )
    pod = made.job_manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (container["image"], container["resources"]["limits"]["nvidia.com/gpu"]) == ("example/siren:1", 2)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert "{{" not in json.dumps(pod | {"containers": [{k: v for k, v in container.items() if k != "args"}]})
