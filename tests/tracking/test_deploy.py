"""docs/deploy.md for real: MLflow and Prefect on PostgreSQL, artifacts and DVC's remote in an S3-compatible store."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from siren import tracking
from siren.stages import pipeline
from siren.tracking import export, registry, store
from tests.flows import servers
from tests.flows.conftest import environment, project, start, template  # noqa: F401
from tests.processes import PATIENCE, eventually, free_port
from tests.tracking import builders

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of MLflow, moto and what they stand on
]
BUCKET = "siren"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL server with the databases `mlflow` and `prefect` → its host and port. It will not run as root."""
    pytest.importorskip("psycopg2")
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if found is None:
        pytest.skip("no PostgreSQL server on this machine (Debian: postgresql)")
    binaries, port = Path(found).parent, free_port()
    owner: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="siren-postgres-"))
    try:
        if owner:
            shutil.chown(folder, **owner)
        make = [binaries / "initdb", "-D", folder / "data", "-U", "siren", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, **owner)
        command = [binaries / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **owner)
        try:
            address = f"127.0.0.1:{port}"
            eventually(lambda: _answers(address), f"PostgreSQL: {folder / 'log'}")
            for name in ("mlflow", "prefect"):
                _query(address, "postgres", f"create database {name}")
            yield address
        finally:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown: it waits for no client
            process.wait(30)
    finally:
        shutil.rmtree(folder)


def _query(address: str, database: str, text: str) -> list[tuple[Any, ...]]:
    import psycopg2

    connection = psycopg2.connect(f"postgresql://siren@{address}/{database}", connect_timeout=5)
    connection.autocommit = True
    try:
        cursor = connection.cursor()
        cursor.execute(text)
        return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def _answers(address: str) -> bool:
    import psycopg2

    try:
        return bool(_query(address, "postgres", "select 1"))
    except psycopg2.OperationalError:
        return False


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of an S3-compatible server (moto) with an empty bucket; the environment leads everything there."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer
    running = server("127.0.0.1", free_port())
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "siren",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client
    running.stop()


def keys(s3: Any, prefix: str) -> list[str]:
    return [found["Key"] for found in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]


@pytest.fixture
def mlflow_server(postgres: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLflow's server as docs/deploy.md starts it → its address. Clients know neither the database nor the bucket."""
    port = free_port()
    backend, artifacts = f"postgresql+psycopg2://siren@{postgres}/mlflow", f"s3://{BUCKET}/mlflow"
    process = servers.mlflow(port, tmp_path, backend, artifacts)
    try:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        servers.kill(process)


def test_runs_lie_in_postgresql_and_models_in_the_bucket_and_both_are_read_back_through_the_server(
    mlflow_server: str, postgres: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "project"
    config = builders.settings()
    builders.write_models(here, config)
    builders.write_metrics(here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("SIREN_EXPORT", "0")
    for name in ("SIREN_PIPELINE", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    (here / "note.txt").write_text("kept\n")
    with tracking.stage("codec", config) as run:
        run.log(1, {"loss": 3.0})
        run.artifact(here / "note.txt")
    export.flush(here)
    pipeline.register(config)
    client = store.connect(mlflow_server)
    (experiment,) = client.search_experiments(filter_string="name = 'siren'")
    (codec,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'codec'")
    assert [(p.step, p.value) for p in client.get_metric_history(codec.info.run_id, "loss")] == [(1, 3.0)]
    note = client.download_artifacts(codec.info.run_id, "note.txt", str(tmp_path))
    assert Path(note).read_text() == "kept\n"
    version = registry.version("models:/siren@challenger")
    fetched = registry.fetch(version)  # raises where a byte differs
    weights = "transformers/1/model.safetensors"
    own = here / "models" / "stage1" / "1" / "model.safetensors"
    assert (fetched / "model" / weights).read_bytes() == own.read_bytes()
    # and they are where the document says, not in files of the project or of the server
    assert _query(postgres, "mlflow", "select value from metrics where key = 'loss'") == [(3.0,)]
    assert _query(postgres, "mlflow", "select name, version from model_versions") == [("siren", 1)]
    assert any(key.endswith("/note.txt") for key in keys(s3, "mlflow/"))
    assert any(key.endswith(weights) for key in keys(s3, "mlflow/"))
    assert not (here / store.DATABASE).exists()
    assert not (here / "mlartifacts").exists()


def test_prefect_keeps_its_runs_in_postgresql(
    postgres: str,
    project: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    start: servers.Start,  # noqa: F811
) -> None:
    environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"postgresql+asyncpg://siren@{postgres}/prefect"
    servers.server(environment, start)
    command = [sys.executable, "-m", "flows.siren"]
    own = {**environment, "PYTHONPATH": str(builders.ROOT), "SIREN_EXPORT": "0"}
    done = subprocess.run(command, cwd=project, env=own, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    states = _query(postgres, "prefect", "select state_type, count(*) from flow_run group by state_type")
    assert states == [("COMPLETED", 3)]  # siren, collect, filter
    tasks = _query(postgres, "prefect", "select name from task_run where state_type = 'COMPLETED'")
    assert {"caption", "fetch", "segment"} <= {name.split()[0] for (name,) in tasks}  # subflows are tasks, too
    assert not list(Path(environment["PREFECT_HOME"]).glob("*.db"))


def test_what_dvc_pushes_to_the_bucket_another_clone_pulls(s3: Any, project: Path, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("dvc_s3")

    def dvc(*arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    remote = f"dvc-{uuid.uuid4().hex}"
    dvc("remote", "add", "--default", "bucket", f"s3://{BUCKET}/{remote}")
    dvc("remote", "modify", "bucket", "endpointurl", os.environ["AWS_ENDPOINT_URL"])
    dvc("repro")
    dvc("push")
    assert len(keys(s3, f"{remote}/files/md5/")) == 1  # the three outputs are the same bytes
    shutil.rmtree(project / ".dvc" / "cache")
    for name in "abc":
        (project / name).unlink()
    dvc("pull")
    assert [(project / name).read_text() for name in "abc"] == ["1\n"] * 3
