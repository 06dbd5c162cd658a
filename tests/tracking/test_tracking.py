"""Runs are recorded locally first; one exporter mirrors them to MLflow, all and once, whatever dies meanwhile."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siren import config, tracking
from siren.tracking import export, lineage, locks, records, store, watch
from siren.tracking.export import Exporter
from siren.tracking.run import Run
from tests.flows import servers
from tests.processes import eventually

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")

ROOT = Path(__file__).resolve().parents[2]
CONFIG = config.load(ROOT / "params.yaml")


def mlflow_runs(root: Path) -> dict[str, Any]:
    """Name → MLflow run; the run of a pipeline is called "pipeline"."""
    client = store.connect(store.address(root))
    experiment = client.get_experiment_by_name("siren")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    return {"pipeline" if r.data.tags["stage"] == "pipeline" else r.info.run_name: r for r in found}


def history(root: Path, run: Any, key: str) -> list[tuple[int, float]]:
    client = store.connect(store.address(root))
    return sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    """A stage in a process of its own."""
    head = f"from siren import config, tracking\nc = config.load({str(ROOT / 'params.yaml')!r})\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=60)[0]


# The local record


def test_a_stage_leaves_a_complete_record_without_importing_mlflow(root: Path) -> None:
    code = (
        "import sys\n"
        "with tracking.stage('fetch', c, ('seed', 'collect.fetch')) as run:\n"
        "    run.log(1, {'loss': 2})\n"
        "print([m for m in ('mlflow', 'torch', 'matplotlib') if m in sys.modules])\n"
    )
    assert finish(python(code)).strip() == "[]"
    (folder,) = records.folders(root)
    record = json.loads((folder / "run.json").read_text())
    assert (record["name"], record["status"]) == ("fetch", "FINISHED")
    assert {name.split(".download.")[0] for name in record["params"]} == {
        "seed",
        "collect.fetch.sources",
        "collect.fetch",
    }
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) | {"time": 0} == {"time": 0, "step": 1, "metrics": {"loss": 2.0}}


def test_an_exception_passes_through_and_is_on_record(root: Path) -> None:
    with pytest.raises(RuntimeError, match="no more disk"), tracking.stage("fetch", CONFIG):
        raise RuntimeError("no more disk")
    record = json.loads((records.folders(root)[0] / "run.json").read_text())
    assert (record["status"], record["error"]) == ("FAILED", "RuntimeError: no more disk")


def test_artifacts_stay_inside_the_run_and_have_to_exist(root: Path) -> None:
    with tracking.stage("fetch", CONFIG) as run:
        with pytest.raises(ValueError, match="leaves the run's folder"):
            run.audio("../../evil", np.zeros(10, np.float32), 16000)
        with pytest.raises(ValueError, match=r"no file or folder nowhere\.csv"):
            run.artifact("nowhere.csv")
    assert records.artifact_files(run.folder) == []


def test_a_long_caption_may_be_the_name_of_a_sound(root: Path) -> None:
    with tracking.stage("sample", CONFIG) as run:
        run.audio(f"aligned/{'a dog barks ' * 40}", np.zeros(10, np.float32), 16000)
        run.audio(f"aligned/{'雨が降る' * 40}", np.zeros(10, np.float32), 16000)
    assert len(records.artifact_files(run.folder)) == 2


def test_an_experiment_in_a_temporary_copy_reports_to_its_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert lineage.project_root() == tmp_path


def test_the_lineage_of_an_experiment_in_a_temporary_copy_is_that_of_the_copy(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = root / ".dvc" / "tmp" / "exps" / "tmpabc"
    (copy / "below").mkdir(parents=True)
    entry = "stages:\n  {}:\n    outs: [{{path: data/clips, md5: {}}}]\n"
    for folder in (root, copy):
        (folder / "dvc.yaml").write_text("stages:\n  segment: {cmd: x, deps: [data/clips]}\n")
        (folder / "dvc.lock").write_text(entry.format("fetch", folder.name))
    for here in (copy, copy / "below"):
        monkeypatch.chdir(here)
        assert lineage.workspace() == copy
        with tracking.stage("segment", CONFIG) as run:
            pass
        assert run.folder.parent == root / ".siren" / "runs"
        assert run.record["tags"]["data.in.data/clips"] == "tmpabc"
        (root / "dvc.lock").write_text(entry.format("segment", "of another"))
        assert lineage.out_tags(root, run.record) == {}
        (copy / "dvc.lock").write_text(
            entry.format("fetch", "tmpabc") + entry.format("segment", "made").split("\n", 1)[1]
        )
        assert lineage.out_tags(root, run.record) == {"data.out.data/clips": "made"}
        (copy / "dvc.lock").write_text(entry.format("fetch", "tmpabc"))
    monkeypatch.chdir(root)
    with tracking.stage("segment", CONFIG) as run:
        pass
    assert "workspace" not in run.record  # a project may move
    (copy / "dvc.yaml").unlink()
    monkeypatch.chdir(copy / "below")
    assert lineage.workspace() == root


# The export


def test_everything_arrives(root: Path) -> None:
    import matplotlib.figure

    (root / "table.csv").write_text("a,b\n")
    with tracking.stage("stage1@0", CONFIG, ("seed", "train.stage1")) as run:
        for step in range(1200):  # more than one batch
            run.log(step, {"loss": 1.0 / (step + 1), "codes: k=0, share": step})
        run.summary({"accuracy": 0.5})
        run.audio("real/dog", np.sin(np.arange(8000) / 10, dtype=np.float32), 16000, step=7)
        run.figure("curve", matplotlib.figure.Figure())
        run.artifact("table.csv", "tables")
    assert export.flush(root) == 1
    made = mlflow_runs(root)["stage1@0"]
    assert made.info.status == "FINISHED"
    assert made.data.params["train.stage1.training.steps"] == str(CONFIG.train.stage1.training.steps)
    assert "audio.sample_rate" not in made.data.params
    assert made.data.tags["scale"] == CONFIG.scale
    assert len(history(root, made, "loss")) == 1200
    assert history(root, made, "accuracy") == [(0, 0.5)]
    assert "codes: k-0- share" in made.data.metrics
    client = store.connect(store.address(root))
    files = {
        f.path for d in ("", "audio/real", "figures", "tables") for f in client.list_artifacts(made.info.run_id, d)
    }
    assert files - {"audio", "figures", "images", "tables"} == {
        "listen.html",
        "audio/real/dog-000007.wav",
        "audio/real/dog-000007.png",
        "figures/curve.png",
        "tables/table.csv",
    }


def test_values_that_are_not_finite_and_lines_that_are_not_whole_do_no_harm(root: Path) -> None:
    with tracking.stage("align", CONFIG) as run:
        run.log(1, {"loss": float("nan"), "reward": float("inf")})
        run.log(2, {"loss": 1.0})
        with open(run.folder / "metrics.jsonl", "a") as file:
            file.write('{"time": 1, "step": 3, "metr')  # as a process leaves it that is killed while it writes
        export.flush(root)
    export.flush(root)
    made = mlflow_runs(root)["align"]
    assert [step for step, _ in history(root, made, "loss")] == [1, 2]


def test_a_store_that_is_gone_keeps_no_other_waiting_and_its_runs_can_be_redirected(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, here, connect = "http://typo", store.address(root), store.connect

    def reach(uri: str) -> Any:
        if uri == gone:
            raise ConnectionError("no such host")
        return connect(uri)

    monkeypatch.setattr(store, "connect", reach)
    monkeypatch.setenv("SIREN_PIPELINE", "prefect-1")
    with monkeypatch.context() as shell:
        shell.setenv("MLFLOW_TRACKING_URI", gone)
        with tracking.stage("codec", CONFIG) as run:
            run.log(1, {"loss": 3.0})
    with tracking.stage("clap", CONFIG):
        pass
    assert export.flush(root, uri=here) == 1
    assert set(mlflow_runs(root)) == {"pipeline", "clap"}
    with pytest.raises(ValueError, match=f"1 runs .*once {gone} answers; .*siren track flush --redirect {gone}"):
        export.flush(root, 0)
    with pytest.raises(ValueError, match=f"{here} is the present store"):
        export.redirect(root, here)
    with pytest.raises(ValueError, match=f"no run here belongs to the store http://a; .*: {gone}, {here}"):
        export.redirect(root, "http://a")
    assert export.redirect(root, gone) == 1
    assert export.flush(root, 10) == 2
    assert history(root, mlflow_runs(root)["codec"], "loss") == [(1, 3.0)]


def test_what_was_sent_to_a_store_is_sent_whole_to_the_one_that_replaces_it(
    root: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIREN_PIPELINE", "prefect-1")
    with tracking.stage("codec", CONFIG) as run:
        run.log(1, {"loss": 3.0})
        with pytest.raises(ValueError, match="codec is at work"):
            records.redirect(root, store.address(root), "http://a")
    export.flush(root)
    old = store.address(root)
    shutil.copy(database, tmp_path / "team.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'team.db'}")
    assert export.redirect(root, old) == 1
    assert records.pipeline_notes(root) == []
    export.flush(root)
    assert history(root, mlflow_runs(root)["codec"], "loss") == [(1, 3.0)]
    assert {note["store"] for note in records.pipeline_notes(root)} == {store.address(root)}


def test_an_exporter_leaves_for_those_who_redirect(root: Path) -> None:
    exporter = export.Exporter(root)
    assert exporter.there()
    with locks.share(export._leaving(root)):
        assert not exporter.there()
        exporter.until_idle()  # it returns at once
    with export.exclusive(root), pytest.raises(ValueError, match="still busy after 0 s"):
        export.redirect(root, "http://a", 0)


def test_an_exporter_that_dies_before_it_notes_what_it_sent_doubles_nothing(root: Path) -> None:
    with tracking.stage("codec", CONFIG) as run:
        run.log(1, {"loss": 3.0})
        run.log(2, {"loss": 2.0})
    export.flush(root)
    (run.folder / "export.json").unlink()
    export.flush(root)
    client = store.connect(store.address(root))
    assert len(client.search_runs([client.get_experiment_by_name("siren").experiment_id])) == 1
    assert history(root, mlflow_runs(root)["codec"], "loss") == [(1, 3.0), (2, 2.0)]


def test_a_sound_that_is_sent_again_is_there_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an exporter that died before it noted it, and by a training that went back to its checkpoint."""
    monkeypatch.setenv("SIREN_PIPELINE", "prefect-1")

    def made(resumes: bool) -> Path:
        with tracking.stage("align", CONFIG) as run:
            run.follow(root / "checkpoints", resumes)
            run.audio("jardín #1, 100 %/perro", np.sin(np.arange(800) / 10, dtype=np.float32), 16000, step=7)
        export.flush(root)
        return run.folder

    def files() -> dict[str, list[str]]:
        runs, client = mlflow_runs(root), store.connect(store.address(root))
        places = {"align": ("audio/jardín -1, 100 -", "images"), "pipeline": ("images",)}
        return {
            name: [f.path for place in own for f in client.list_artifacts(runs[name].info.run_id, place)]
            for name, own in places.items()
        }

    folder = made(resumes=False)
    once = files()
    assert [len(found) for found in once.values()] == [4, 2]  # sound, picture; and the picture in two sizes
    (folder / "export.json").unlink()
    export.flush(root)
    assert files() == once
    made(resumes=True)
    assert files() == once

    runs, client = mlflow_runs(root), store.connect(store.address(root))
    client.log_image(runs["pipeline"].info.run_id, np.zeros((4, 8), np.uint8), key="align/dog", step=7)
    chance = re.compile(r"timestamp\+\d+\+[0-9a-f-]{36}")  # of MLflow's names
    theirs = {chance.sub("", name) for name in files()["pipeline"] if "~dog+" in name}
    ours = {chance.sub("", name) for name in once["pipeline"]}
    assert {name.replace("jard-n -1- 100 -~perro", "dog") for name in ours} == theirs
    assert len(theirs) == 2


def test_a_running_stage_is_followed(root: Path) -> None:
    exporter = Exporter(root)
    with tracking.stage("codec", CONFIG) as run:
        run.log(1, {"loss": 3.0})
        assert exporter.sweep() == (1, True)
        assert mlflow_runs(root)["codec"].info.status == "RUNNING"
        run.log(2, {"loss": 2.0})
    assert exporter.sweep() == (0, False)
    assert mlflow_runs(root)["codec"].info.status == "FINISHED"
    assert history(root, mlflow_runs(root)["codec"], "loss") == [(1, 3.0), (2, 2.0)]


def test_a_stage_that_is_killed_is_marked_and_its_rerun_is_a_new_run(root: Path) -> None:
    code = "import time\nwith tracking.stage('codec', c) as run:\n    run.log(1, {'loss': 1})\n    time.sleep(60)\n"
    process = python(code)
    eventually(lambda: any((f / "metrics.jsonl").stat().st_size for f in records.folders(root)))
    process.send_signal(signal.SIGKILL)
    finish(process)
    with tracking.stage("codec", CONFIG):
        pass
    export.flush(root)
    client = store.connect(store.address(root))
    runs = client.search_runs([client.get_experiment_by_name("siren").experiment_id])
    assert sorted(r.info.status for r in runs) == ["FAILED", "FINISHED"]
    failed = next(r for r in runs if r.info.status == "FAILED")
    assert "killed" in failed.data.tags["error"]
    assert failed.data.metrics == {"loss": 1.0}


def test_a_training_that_resumes_continues_the_run_of_the_process_that_was_killed(root: Path) -> None:
    """The record of the second process is sent before it knows what it continues, as it may happen."""
    code = (
        "import pathlib, time\n"
        "with tracking.stage('codec', c) as run:\n"
        "    run.follow(pathlib.Path('checkpoints'), resumes=False)\n"
        "    for step in (1, 2):\n        run.log(step, {'loss': 1})\n"
        "    time.sleep(60)\n"
    )
    process = python(code)
    eventually(lambda: any((f / "metrics.jsonl").read_text().count("\n") == 2 for f in records.folders(root)))
    process.send_signal(signal.SIGKILL)
    finish(process)
    exporter = Exporter(root)
    exporter.sweep()
    (before,) = mlflow_runs(root).values()
    assert (before.info.status, "error" in before.data.tags) == ("FAILED", True)
    with tracking.stage("codec", CONFIG) as run:
        exporter.sweep()
        run.follow(root / "checkpoints", resumes=True)
        run.log(3, {"loss": 1.0})
        exporter.sweep()
        (during,) = mlflow_runs(root).values()
        assert (during.info.run_id, during.info.status) == (before.info.run_id, "RUNNING")
    export.flush(root)
    client = store.connect(store.address(root))
    (after,) = client.search_runs([client.get_experiment_by_name("siren").experiment_id])
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert (after.data.tags["resumed"], "error" in after.data.tags) == (run.id, False)
    assert [step for step, _ in history(root, after, "loss")] == [1, 2, 3]


def test_a_record_is_added_to_by_the_processes_that_work_for_it(root: Path) -> None:
    """On a cluster a training reopens the record that its driver keeps, once more after each node that died."""
    checkpoints = root / "checkpoints"
    with tracking.stage("codec", CONFIG) as run:
        with Run.reopen(run.folder) as first:
            first.follow(checkpoints, resumes=False)
            first.log(1, {"loss": 1.0})
        with Run.reopen(run.folder) as second:
            second.follow(checkpoints, resumes=True)
            second.log(2, {"loss": 0.5})
            second.tag({"seen": "there"})
    record = json.loads((run.folder / "run.json").read_text())
    assert (record["status"], record["tags"]["seen"], "continues" in record) == ("FINISHED", "there", False)
    assert [json.loads(line)["step"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    with tracking.stage("codec", CONFIG) as later, Run.reopen(later.folder) as worker:
        worker.follow(checkpoints, resumes=True)
    assert json.loads((later.folder / "run.json").read_text())["continues"] == run.id


def test_an_exporter_leaves_a_folder_that_took_the_place_of_its_own(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = Exporter(root)
    root.rename(root.with_name("away"))
    root.mkdir()
    monkeypatch.setattr(exporter, "sweep", lambda: pytest.fail("it looked at what is not its own"))
    exporter.until_idle()
    root.rmdir()
    exporter.until_idle()


def test_a_training_that_starts_afresh_is_a_run_of_its_own(root: Path) -> None:
    for _ in range(2):
        with tracking.stage("codec", CONFIG) as run:
            run.follow(root / "checkpoints", resumes=False)
    assert "continues" not in run.record
    assert (root / "checkpoints" / "run").read_text() == run.id


def test_what_another_process_writes_into_a_record_stays_when_its_keeper_ends_it(root: Path) -> None:
    """As a training on a cluster does: the record is the driver's, the curve and what it continues are the worker's."""
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / "run").write_text("before")
    with tracking.stage("codec", CONFIG) as run:
        with Run.reopen(run.folder) as again:
            again.follow(root / "checkpoints", resumes=True)
            again.log(1, {"loss": 2.0})
            again.summary({"last": 2.0})
        run.tag({"a": "b"})
    told = json.loads((run.folder / "run.json").read_text())
    assert (told["continues"], told["status"], told["tags"]["a"]) == ("before", "FINISHED", "b")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["metrics"]) for line in lines] == [(1, {"loss": 2.0}), (None, {"last": 2.0})]


def test_data_that_a_stage_read_are_inputs_of_its_run(root: Path) -> None:
    (root / "dvc.yaml").write_text("stages:\n  tokenize:\n    cmd: x\n    deps: [data/splits]\n")
    digest = "0123456789abcdef0123456789abcdef.dir"
    (root / "dvc.lock").write_text(f"stages:\n  select:\n    outs: [{{path: data/splits, md5: {digest}}}]\n")
    with tracking.stage("tokenize", CONFIG):
        pass
    export.flush(root)
    (given,) = mlflow_runs(root)["tokenize"].inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.dataset.source_type) == ("data/splits", digest, "dvc")
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "tokenize")]


def test_the_machine_is_watched_and_what_is_printed_is_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "ALIVE_SECONDS", 0.02)
    monkeypatch.setattr(watch, "SYSTEM_SECONDS", 0.05)

    def work(run: tracking.Run) -> None:
        print("10 %\r", end="")
        print("100 %")
        print("half a line", end="", file=sys.stderr)
        eventually(lambda: "system/" in (run.folder / "metrics.jsonl").read_text())
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"), tracking.stage("codec", CONFIG) as run:
        work(run)
    assert "100 %\n" in capsys.readouterr().out  # and still where it was printed
    kept = records.log(root, "codec")
    assert "100 %" in kept.splitlines()
    assert "10 %" not in kept.splitlines()
    assert "RuntimeError: no more" in kept
    assert kept.splitlines()[-1] == "half a line"
    assert sys.stdout.__class__ is not watch.Tee
    assert "torch" in json.loads((run.folder / "run.json").read_text())["imported"]  # by this test's process
    export.flush(root)
    made = mlflow_runs(root)["codec"]
    assert {"system/cpu_percent", "system/memory_gigabytes", "system/disk_free_gigabytes"} <= set(made.data.metrics)
    client = store.connect(store.address(root))
    assert "stage.log" in {f.path for f in client.list_artifacts(made.info.run_id)}


def test_a_store_that_was_replaced_gets_the_whole_record_again(root: Path, database: Path) -> None:
    with tracking.stage("codec", CONFIG) as run:
        run.log(1, {"loss": 3.0})
        export.flush(root)
        (root / store.DATABASE).unlink()
        shutil.copy(database, root)
        store.connect(store.address(root))._tracking_client.store.engine.dispose()  # the file changed under it
        run.log(2, {"loss": 2.0})
    export.flush(root)
    assert history(root, mlflow_runs(root)["codec"], "loss") == [(1, 3.0), (2, 2.0)]


def test_a_dead_server_costs_a_stage_nothing_and_is_reported_kindly(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.perf_counter()
    with tracking.stage("codec", CONFIG) as run:
        for step in range(1000):
            run.log(step, {"loss": 1.0})
    assert time.perf_counter() - began < 5
    with pytest.raises(ValueError, match=r"1 runs could not be sent to MLflow within 1 s: .*siren track flush"):
        export.flush(root, timeout=1)
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 1000


# Pipelines


def test_stages_of_one_execution_are_children_of_one_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIREN_PIPELINE", "prefect-1")
    exporter = Exporter(root)
    with tracking.stage("fetch", CONFIG, ("seed",)):
        exporter.sweep()
        assert mlflow_runs(root)["pipeline"].info.status == "RUNNING"
    with pytest.raises(RuntimeError), tracking.stage("codec", CONFIG):
        raise RuntimeError
    exporter.sweep()
    assert mlflow_runs(root)["pipeline"].info.status == "FAILED"
    with tracking.stage("codec", CONFIG) as run:  # the retry
        run.summary({"mel_distance": 0.5})
    exporter.sweep()
    runs = mlflow_runs(root)
    parent = runs["pipeline"]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"codec/mel_distance": 0.5}
    assert parent.data.params["align.steps"] == str(CONFIG.align.steps)
    assert {r.data.tags["mlflow.parentRunId"] for n, r in runs.items() if n != "pipeline"} == {parent.info.run_id}


def test_an_execution_shows_the_sounds_of_its_stages_where_mlflow_compares_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images under keys and steps, for the image grid; a page at the same path in every run, for the comparison."""
    monkeypatch.setenv("SIREN_PIPELINE", "prefect-1")
    wav = np.sin(np.arange(800) / 10, dtype=np.float32)
    with tracking.stage("align", CONFIG) as run:
        run.audio("dog", wav, 16000, step=7)
    for amplitude in (0.0, 1.0):  # tried again: the page has the last try
        with tracking.stage("sample", CONFIG) as run:
            run.audio("aligned/dog", amplitude * wav, 16000)
    export.flush(root)
    runs = mlflow_runs(root)
    client = store.connect(store.address(root))

    def images(name: str) -> set[str]:
        found = (f.path for f in client.list_artifacts(runs[name].info.run_id, "images"))
        return {path.removeprefix("images/").split("+timestamp")[0] for path in found}

    def page(name: str) -> str:
        return Path(client.download_artifacts(runs[name].info.run_id, "listen.html", str(root))).read_text()

    assert images("align") == {"dog+step+7"}
    assert images("pipeline") == {"align~dog+step+7", "sample~aligned~dog+step+0"}
    assert runs["pipeline"].data.tags["mlflow.loggedImages"] == "True"
    assert (page("align").count("<audio"), page("pipeline").count("<audio")) == (1, 2)
    assert "sample/aligned" in page("pipeline")
    last = base64.b64encode((run.folder / "artifacts" / "audio" / "aligned" / "dog.wav").read_bytes()).decode()
    assert last in page("pipeline")


def test_under_dvc_the_execution_is_the_dvc_process_and_the_hashes_are_those_of_the_lock(root: Path) -> None:
    stage = (
        f"from siren import config, tracking\nc = config.load({str(ROOT / 'params.yaml')!r})\n"
        "import sys, pathlib\n"
        "with tracking.stage(sys.argv[1], c):\n    pathlib.Path(sys.argv[2]).write_text(sys.argv[2])\n"
    )
    (root / "stage.py").write_text(stage)
    (root / "dvc.yaml").write_text(
        f"stages:\n  fetch:\n    cmd: {sys.executable} stage.py fetch a\n    outs: [a]\n"
        f"  segment:\n    cmd: {sys.executable} stage.py segment b\n    deps: [a]\n    outs: [b]\n"
    )
    for command in (["init", "--no-scm", "-q"], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True, timeout=60)
    export.flush(root)
    runs = mlflow_runs(root)
    lock = {p: h for stage in lineage._locked(root).values() for p, h in [(o["path"], o["md5"]) for o in stage["outs"]]}
    assert runs["pipeline"].data.tags["pipeline"].startswith("dvc-")
    assert runs["fetch"].data.tags["data.out.a"] == lock["a"]
    assert runs["segment"].data.tags["data.in.a"] == lock["a"]
    assert runs["segment"].data.tags["data.out.b"] == lock["b"]
    assert runs["pipeline"].info.status == "FINISHED"
    assert runs["segment"].data.tags["mlflow.parentRunId"] == runs["pipeline"].info.run_id


def test_a_lock_entry_about_other_inputs_is_not_taken_for_this_run(root: Path) -> None:
    (root / "dvc.lock").write_text(
        "stages:\n  segment:\n    deps: [{path: a, md5: new}]\n    outs: [{path: b, md5: other}]\n"
    )
    record = {"name": "segment", "tags": {"data.in.a": "old"}}
    assert lineage.out_tags(root, record) == {}
    assert lineage.out_tags(root, {"name": "segment", "tags": {"data.in.a": "new"}}) == {"data.out.b": "other"}


# The exporter's process


def test_the_exporter_leaves_when_nothing_is_left_to_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(export, "POLL_SECONDS", 0.05)
    process = python("import time\nwith tracking.stage('fetch', c) as run:\n    time.sleep(2)\n")
    eventually(lambda: len(records.folders(root)) == 1)
    export.main(root)
    finish(process)
    assert mlflow_runs(root)["fetch"].info.status == "FINISHED"


def test_the_exporter_gives_up_on_a_store_that_never_answers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(export, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(export, "POLL_SECONDS", 0.05)
    with tracking.stage("fetch", CONFIG) as run:
        pass
    export.main(root)
    assert not records.caught_up(run.folder)


def test_two_stages_start_one_exporter_and_do_not_wait_for_it(root: Path) -> None:
    code = "with tracking.stage('fetch', c) as run:\n    run.log(1, {'loss': 1})\n"
    for stage in [python(code, SIREN_EXPORT="1"), python(code, SIREN_EXPORT="1")]:
        finish(stage)
    folders = records.folders(root)
    eventually(lambda: all(records.caught_up(folder) for folder in folders))
    owners = [p for p in Path("/proc").glob("[0-9]*") if _command(p) == f"siren.tracking.export {root}"]
    for process in owners:
        os.kill(int(process.name), signal.SIGTERM)
    assert (len(folders), len(owners)) == (2, 1)


def _command(process: Path) -> str:
    try:
        return " ".join((process / "cmdline").read_text().split("\0")[2:4])
    except OSError:
        return ""


@pytest.mark.slow
def test_what_a_server_missed_arrives_when_it_is_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5977")
    with tracking.stage("codec", CONFIG) as run:
        run.log(1, {"loss": 3.0})
        run.audio("dog", np.zeros(1000, np.float32), 16000)
    with pytest.raises(ValueError, match="could not be sent"):
        export.flush(root, timeout=1)
    server = servers.mlflow(5977, root, f"sqlite:///{root / store.DATABASE}", "files")
    try:
        assert export.flush(root, timeout=180) == 1
        assert history(root, mlflow_runs(root)["codec"], "loss") == [(1, 3.0)]
    finally:
        servers.kill(server)
