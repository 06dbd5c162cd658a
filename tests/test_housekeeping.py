"""`siren gc` deletes what nothing needs, and nothing that a model, a branch or the workspace does."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siren import config, housekeeping, tracking
from siren.cli import project
from siren.tracking import export, locks, origin, records, store
from tests.tracking import builders
from tests.tracking.conftest import database, root  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
STAGE = """\
import pathlib
value = pathlib.Path("given").read_text()
for name in ("x", "y"):
    folder = pathlib.Path("made")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(name + value)
"""


def run(*command: str) -> None:
    identity = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org"}
    identity |= {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org"}
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **identity})


def repro(value: str) -> str:
    """Run the pipeline on `value` → DVC's hash of what it made."""
    Path("given").write_text(value)
    run(sys.executable, "-m", "dvc", "repro", "-q")
    return tracking.run.lineage.all_data(Path())["data.made"]


def objects(folder: Path) -> int:
    return sum(1 for _ in (folder / housekeeping.CACHE).glob("??/*"))


@pytest.fixture
def pipeline(root: Path) -> Path:  # noqa: F811
    """A project with a stage that makes a folder of two files."""
    (root / "stage.py").write_text(STAGE)
    text = f"stages:\n  make:\n    cmd: {sys.executable} stage.py\n    deps: [given, stage.py]\n    outs: [made]\n"
    (root / "dvc.yaml").write_text(text)
    run("git", "init", "-q")
    run(sys.executable, "-m", "dvc", "init", "-q")
    return root


@pytest.mark.slow
def test_what_the_workspace_a_branch_or_a_model_needs_is_kept(pipeline: Path) -> None:
    committed = repro("1")
    run("git", "add", "dvc.lock", "dvc.yaml", "stage.py")
    run("git", "commit", "-q", "-m", "first")
    registered = repro("2")
    client = store.connect(store.address(pipeline))
    client.create_registered_model("siren")
    version = client.create_model_version("siren", (pipeline / "nowhere").as_uri())
    client.set_model_version_tag("siren", version.version, "data.made", registered)
    forgotten, here = repro("3"), repro("4")
    Path("sounds").write_text("recorded once")
    run(sys.executable, "-m", "dvc", "add", "-q", "sounds")
    assert len({committed, registered, forgotten, here}) == 4
    assert objects(pipeline) == 13  # a listing and two files each, and what was added
    assert housekeeping.collect(pipeline, days=1) == []  # touched today
    found = housekeeping.collect(pipeline, days=0)
    assert [(what, path.suffix) for what, path in found if path.suffix == ".dir"] == [("cached data", ".dir")]
    assert forgotten == next(path.parent.name + path.name for _, path in found if path.suffix == ".dir")
    assert len(found) == 3
    assert objects(pipeline) == 13  # looking deletes nothing
    total = housekeeping.totals(found)[-1][2]
    assert housekeeping.remove(pipeline, found) == total > 0
    assert objects(pipeline) == 10
    run(sys.executable, "-m", "dvc", "status", "--quiet")  # exit code 0: nothing of the workspace is missing
    rows = origin.models_of("made", "siren", pipeline).rows
    assert [(row[0], row[4]) for row in rows] == [("models:/siren/1", "no")]


def named(word: str) -> str:
    """A dvc.lock or .dvc file that names one output, whose hash is that of `word`."""
    return f"outs:\n- md5: {hash_of(word)}\n  path: made\n"


def hash_of(word: str) -> str:
    return hashlib.md5(word.encode()).hexdigest()


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a registry, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_what_any_ref_names_is_kept_and_nothing_is_offered_where_git_does_not_answer(empty: Path) -> None:
    assert housekeeping.keep(empty) == set()  # no repository at all
    run("git", "init", "-q")
    assert housekeeping.keep(empty) == set()  # no commit yet
    refs = ("refs/exps/ab/cdef/one", "refs/exps/celery/stash", "refs/tags/v1", "HEAD")
    for ref in refs:
        Path("dvc.lock").write_text(named(ref))
        run("git", "add", "dvc.lock")
        run("git", "commit", "-q", "-m", "x")
        if ref != "HEAD":
            run("git", "update-ref", ref, "HEAD")
    run("git", "tag", "-a", "-m", "a file, not a commit", "blob", "HEAD:dvc.lock")
    Path("dvc.lock").unlink()
    assert housekeeping.keep(empty) == set(map(hash_of, refs))
    run("git", "tag", "-d", "blob")
    lost = subprocess.check_output(["git", "rev-parse", "HEAD:dvc.lock"], text=True).strip()
    (empty / ".git" / "objects" / lost[:2] / lost[2:]).unlink()
    with pytest.raises(ValueError, match=f"no object {lost}"):
        housekeeping.keep(empty)
    (empty / ".git" / "config").write_text("[broken")
    with pytest.raises(ValueError, match="git does not say"):
        housekeeping.keep(empty)


def test_every_entry_of_the_stash_is_kept_with_what_git_did_not_track(empty: Path) -> None:
    run("git", "init", "-q")
    (empty / "sounds.dvc").write_text(named("committed"))
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "x")
    for word in ("older", "newer"):
        (empty / "sounds.dvc").write_text(named(word))
        (empty / "more.dvc").write_text(named(f"{word}, untracked"))
        run("git", "stash", "-u")
    stashed = {"older", "newer", "older, untracked", "newer, untracked"}
    assert housekeeping.keep(empty) == {hash_of(word) for word in stashed | {"committed"}}


def test_locks_and_dvc_files_of_all_folders_are_read_even_where_a_merge_left_no_yaml(empty: Path) -> None:
    places = ("dvc.lock", "a/dvc.lock", "a/b/c.dvc", "über.dvc")
    for name in (*places, "a/not-dvc.lock.txt", ".dvc/tmp/x.dvc", ".venv/dvc.lock", "mlartifacts/dvc.lock"):
        (empty / name).parent.mkdir(parents=True, exist_ok=True)
        (empty / name).write_text(f"<<<<<<< HEAD\n{named(name)}=======\n>>>>>>> other\n")
    assert housekeeping._workspace(empty) == set(map(hash_of, places))
    run("git", "init", "-q")
    run("git", "add", *places)
    run("git", "commit", "-q", "-m", "x")
    for name in places:
        (empty / name).unlink()
    assert housekeeping.keep(empty) == set(map(hash_of, places))
    assert housekeeping.keep(empty / "a") == {hash_of(name) for name in places if name.startswith("a/")}


def test_nothing_is_offered_where_the_registry_is_not_and_none_is_made(empty: Path) -> None:
    (empty / "dvc.lock").write_text("stages: {}")
    with pytest.raises(ValueError, match=r"no registry at sqlite.*set MLFLOW_TRACKING_URI"):
        housekeeping.collect(empty, 0)
    (empty / "dvc.lock").unlink()
    assert housekeeping.collect(empty, 0) == []  # DVC made nothing that could be lost
    cached = empty / housekeeping.CACHE / "ab" / "cdef"
    cached.parent.mkdir(parents=True)
    cached.write_text("x")
    with pytest.raises(ValueError, match="no registry at sqlite"):
        housekeeping.collect(empty, 0)
    assert not (empty / store.DATABASE).exists()


def test_the_stores_that_local_records_name_are_asked_too(
    root: Path,  # noqa: F811
    database: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config.load(builders.ROOT / "params.yaml")
    uri = f"sqlite:///{tmp_path / 'team.db'}"
    with monkeypatch.context() as shell:
        shell.setenv("MLFLOW_TRACKING_URI", uri)
        with tracking.stage("codec", settings):
            pass
    with pytest.raises(ValueError, match=f"no registry at {uri}.*siren track flush --redirect {uri}"):
        housekeeping.keep(root)
    shutil.rmtree(root / ".siren" / "runs")
    assert housekeeping.keep(root) == set()
    records.save_pipeline(root, {"id": "prefect-1", "store": uri})  # its records were deleted; `siren gc` does that
    shutil.copy(database, tmp_path / "team.db")
    client = store.connect(uri)
    client.create_registered_model("siren")
    version = client.create_model_version("siren", (root / "nowhere").as_uri())
    client.set_model_version_tag("siren", version.version, "data.made", hash_of("team"))
    assert housekeeping.keep(root) == {hash_of("team")}
    with monkeypatch.context() as shell:
        shell.setattr(store, "connect", lambda uri: (_ for _ in ()).throw(ConnectionError("refused")))
        with pytest.raises(ValueError, match=r"the registry .* does not answer.*refused.*set MLFLOW_TRACKING_URI"):
            housekeeping.keep(root)


@pytest.mark.parametrize("stage", ["judge", "autocap"])
def test_records_go_once_mlflow_has_them_and_checkpoints_once_they_are_old(root: Path, stage: str) -> None:  # noqa: F811
    settings = config.load(builders.ROOT / "params.yaml")
    with tracking.stage("codec", settings) as run:
        pass
    old, used = (root / ".siren" / "checkpoints" / name / "abc" for name in ("stage1-0", f"{stage}-part"))
    for folder in (old, used):
        folder.mkdir(parents=True)
        (folder / "step-00000001.json").write_text("{}")
    with locks.hold(root / ".siren" / "locks" / f"{stage}.lock", print):
        assert [path for _, path in housekeeping.collect(root, 0)] == [old]
    assert [path for _, path in housekeeping.collect(root, 0)] == [used, old]
    export.flush(root)
    assert [path for _, path in housekeeping.collect(root, 0)] == [used, old, run.folder]
    assert housekeeping.collect(root, 1) == []
    housekeeping.remove(root, housekeeping.collect(root, 0))
    assert not any(path.exists() for path in (used, old, run.folder))


def test_pieces_of_stages_that_never_ended_go_once_they_are_old(root: Path) -> None:  # noqa: F811
    left, used = (root / ".siren" / "pieces" / name / "abc" for name in ("segment", "tokenize"))
    for folder in (left, used):
        folder.mkdir(parents=True)
        (folder / "000000.arrow").write_text("12345")
    with locks.hold(root / ".siren" / "locks" / "tokenize.lock", print):
        assert housekeeping.collect(root, 0) == [(housekeeping.PIECES, left)]
    assert housekeeping.collect(root, 1) == []
    found = housekeeping.collect(root, 0)
    assert (housekeeping.PIECES, [left, used], 10) in housekeeping.totals(found)
    housekeeping.remove(root, found)
    assert not any(path.exists() for path in (left, used))


def test_arms_of_claims_are_shown_and_go_only_where_they_are_asked_for(
    root: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = root / ".siren" / "claims"
    names = {"siren-0-abc/result-def.json", "siren-1-abc/checkpoints/0/abc/step-1.json", "best-of-abc/0.json"}
    for name in names:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("12345")
    begun, *finished = (folder / name for name in ("siren-1-abc", "best-of-abc", "siren-0-abc"))
    rows = housekeeping.totals(housekeeping.collect(root, 0))
    assert rows[-3:-1] == [(housekeeping.ARMS, finished, 10), (housekeeping.BEGUN, [begun], 5)]
    assert housekeeping.collect(root, 1) == []
    with locks.share(root / ".siren" / "locks" / "claims.lock"):
        assert housekeeping.collect(root, 0) == []  # they are worked on
    project.gc(days=0, delete=True)
    assert all((folder / name).is_file() for name in names)
    said = capsys.readouterr().out
    assert said.count("(only with --claims)") == 2
    assert said.endswith("0.0 MB freed\n")
    project.gc(days=0, delete=True, claims=True)
    assert "--claims" not in capsys.readouterr().out
    assert not list(folder.iterdir())


def test_what_killed_writers_left_goes_once_it_is_old(root: Path) -> None:  # noqa: F811
    left = root / "models" / "codec" / ".model.safetensors.0123456789abcdef.partial"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    (left.parent / "model.safetensors").write_text("whole")
    assert housekeeping.collect(root, 1) == []
    assert housekeeping.collect(root, 0) == [(housekeeping.HALVES, left)]


def test_nothing_is_offered_while_dvc_is_at_work_and_nothing_deleted_during_a_flow(root: Path) -> None:  # noqa: F811
    path = root / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"read": {}, "write": {"a": {"pid": os.getpid(), "cmd": "dvc repro"}}}))
    with pytest.raises(ValueError, match=rf"dvc is at work here \(pid {os.getpid()}: dvc repro\)"):
        housekeeping.collect(root, 0)
    path.unlink()
    with (
        locks.hold(root / ".siren" / "workspace.lock", print),
        pytest.raises(ValueError, match="a flow is at work"),
    ):
        housekeeping.remove(root, [])


def test_a_file_that_was_touched_inside_an_old_folder_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    os.utime(tmp_path, (0, 0))
    assert housekeeping._touched(tmp_path) > time.time() - 60
