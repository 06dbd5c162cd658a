"""The whole pipeline at the tiny scale, in a clone, as a user runs it: every stage, again, changed, and killed."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import processes
from tests.processes import environment, run
from tests.tracking.builders import weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the code of the working tree, at the tiny scale, after its first `dvc repro`."""
    folder = processes.clone(tmp_path_factory.mktemp("clone") / "siren")
    run(folder, "siren", "params", "tiny")
    run(folder, "dvc", "repro")
    return folder


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def lock(folder: Path) -> str:
    return (folder / "dvc.lock").read_text()


def test_everything_is_made(clone: Path) -> None:
    metrics = json.loads((clone / "reports/metrics.json").read_text())
    assert {"untrained", "stage1", "aligned"} <= set(metrics["arms"])
    assert metrics["weights"]["aligned"] == weights(clone) != metrics["weights"]["stage1"]  # what was measured
    page = (clone / "reports/index.html").read_text()
    assert page.count("<audio") > 10
    assert "http://" not in page.replace("http://www.w3.org", "")  # self-contained
    assert run(clone, "dvc", "status").strip() == "Data and pipelines are up to date."


def test_a_second_run_does_nothing(clone: Path) -> None:
    before = lock(clone)
    assert stages_run(run(clone, "dvc", "repro")) == []
    assert lock(clone) == before


def test_a_changed_number_reruns_its_stage_and_what_depends_on_it(clone: Path) -> None:
    params = clone / "params.yaml"
    text = params.read_text()
    assert text.count("    bootstrap: 50\n") == 1
    params.write_text(text.replace("    bootstrap: 50\n", "    bootstrap: 60\n"))
    assert stages_run(run(clone, "dvc", "repro")) == ["evaluate", "register"]
    params.write_text(text)
    run(clone, "dvc", "repro")


def test_a_killed_stage_ends_in_the_weights_of_one_never_killed(clone: Path) -> None:
    before = lock(clone)
    weights = clone / "models/stage1/1/model.safetensors"
    expected = weights.read_bytes()
    shutil.rmtree(clone / "models/stage1/1")
    shutil.rmtree(clone / ".dvc/cache/runs", ignore_errors=True)  # else DVC takes the result from there
    for cached in (clone / ".dvc/cache/files").rglob("*"):
        if cached.is_file() and cached.stat().st_size == len(expected) and cached.read_bytes() == expected:
            cached.chmod(0o644)
            cached.unlink()
    process = subprocess.Popen(
        ["dvc", "repro", "stage1@1"],
        cwd=clone,
        env=environment(clone),
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    place, limit = clone / ".siren/checkpoints", time.monotonic() + 120
    while not list(place.rglob("step-*.json")) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (clone / ".dvc/tmp/rwlock").unlink(missing_ok=True)  # DVC says so itself, where a dead process holds it
    run(clone, "dvc", "repro")
    assert weights.read_bytes() == expected
    assert lock(clone) == before


# What a stage may have imported by its end, beside what none of them may. pyarrow and soundfile are for any, and pandas
# comes with pyarrow, which looks for it.
NEVER = {"dvc", "prefect", "ray", "gradio"}
ONLY = {
    "great_expectations": {"validate", "tokenize"},
    "yt_dlp": {"fetch"},
    "mlflow": {"register"},
    "sklearn": {"validate", "analyze", "evaluate", "register"},
    "matplotlib": {"analyze", "evaluate", "register"},
    "torch": {"codec", "clap", "imagebind", "judge", "score", "tokenize", "stage1", "align", "sample", "analyze"}
    | {"evaluate", "register"},
    "transformers": {"clap", "imagebind", "score", "tokenize", "align", "sample", "evaluate", "register"},
}


def test_no_stage_imports_what_it_does_not_use(clone: Path) -> None:
    records = map(json.loads, map(Path.read_text, (clone / ".siren" / "runs").glob("*/run.json")))
    finished = [r for r in records if r["status"] == "FINISHED"]  # one that was killed could not say what it imported
    imported = {r["name"].split("@")[0]: set(r["imported"]) for r in finished}
    assert {"fetch", "validate", "tokenize", "stage1", "align", "evaluate", "register"} <= set(imported)
    extra = {
        stage: sorted((names & NEVER) | {name for name in names if stage not in ONLY.get(name, {stage})})
        for stage, names in imported.items()
    }
    assert {stage: names for stage, names in extra.items() if names} == {}


def test_the_state_of_an_older_model_is_restored_and_repeats_its_metrics(clone: Path) -> None:
    """By what `siren lineage` prints: git checkout, the lock, dvc checkout; then the evaluation is run again."""
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    before = json.loads((clone / "reports" / "metrics.json").read_text())
    run(clone, "git", "add", "-A")
    run(clone, "git", *identity, "commit", "-q", "-m", "first")
    commit = run(clone, "git", "rev-parse", "HEAD").strip()
    assert "models:/siren/1" in run(clone, "siren", "lineage", "data/tokens")
    settings = (clone / "params.yaml").read_text()
    assert settings.count("      temperature: 0.9\n") == 1
    (clone / "params.yaml").write_text(settings.replace("      temperature: 0.9\n", "      temperature: 3.0\n"))
    run(clone, "dvc", "repro", "evaluate")
    assert json.loads((clone / "reports" / "metrics.json").read_text()) != before
    told = run(clone, "siren", "lineage", "models:/siren/1", "--state", "state")
    assert "data/tokens" in told
    run(clone, "git", "checkout", "-q", "--force", commit)
    for name in ("dvc.yaml", "params.yaml"):
        assert (clone / "state" / name).read_bytes() == (clone / name).read_bytes()
    run(clone, "dvc", "checkout", "--force")
    for stage in ("sample", "evaluate"):
        run(clone, "dvc", "repro", "--force", "--single-item", stage)
    assert json.loads((clone / "reports" / "metrics.json").read_text()) == before
