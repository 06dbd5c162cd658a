"""What can be deleted: `siren gc`. Never anything that a registered model came from, that a branch, a tag or any other
ref of git names (DVC's experiments are such refs; of a stash all entries), or that is not sent to MLflow yet.

DVC's own `dvc gc` knows the workspace and commits; it does not know the registry, whose versions stand on data that may
be in no commit. Where a registry is missing, it or git does not answer, or DVC is at work, nothing is offered.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from siren.atomic import leftovers
from siren.tracking import lineage, locks, origin, records, store

CACHE = Path(".dvc/cache/files/md5")
KINDS = CACHED, CHECKPOINTS, PIECES, HALVES, RECORDS, ARMS, BEGUN = (
    "cached data",
    "checkpoints",
    "unfinished pieces",
    "half-written files",
    "records in MLflow",
    "finished arms of claims",
    "unfinished arms of claims",
)
ON_REQUEST = (ARMS, BEGUN)  # `siren claims` and `siren paper` would train them again, for hours
NAMES = re.compile(r"(^|/)dvc\.lock$|[^/]\.dvc$")  # files that name what is in DVC's cache
HASH = re.compile(r"\b[0-9a-f]{32}(?:\.dir)?\b")
APART = {".dvc", ".git", ".venv", "mlartifacts"}  # folders of no workspace's files; the registry's copies go with it
NOTHING = re.compile("not a git repository|Not a valid object name HEAD")  # of git's errors
WRITTEN = (".siren", "data", "models", "outputs", "reports")  # where half-written files may lie
Found = list[tuple[str, Path]]  # what, and a file or folder


def collect(root: Path, days: float) -> Found:
    """Files and folders that nothing needs any more and nobody touched for `days`.

    Raises ValueError where DVC is at work, or git or a registry does not answer.
    """
    before = time.time() - days * 86400
    _idle(root)
    cached = [(CACHED, path) for path in unneeded(root / CACHE, keep(root))]
    found = [*cached, *_checkpoints(root), *_pieces(root), *_halves(root), *_records(root), *_arms(root)]
    return [(what, path) for what, path in found if _touched(path) < before]


def totals(found: Found) -> list[tuple[str, list[Path], int]]:
    """For each kind: its paths and bytes; the last row is all."""
    kinds = {what: [path for kind, path in found if kind == what] for what in KINDS}
    rows = [(what, paths, sum(map(_bytes, paths))) for what, paths in kinds.items()]
    return [*rows, ("all", [path for _, path in found], sum(row[2] for row in rows))]


def remove(root: Path, found: Found) -> int:
    """Delete them, with the workspace to itself → bytes. Raises ValueError where a flow or DVC is at work."""
    with locks.attempt(root / ".siren" / "workspace.lock") as free:
        if not free:
            raise ValueError(f"a flow is at work in {root}; try again when it has ended")
        _idle(root)
        freed = 0
        for _, path in found:
            freed += _bytes(path)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.chmod(0o644)  # DVC protects what it caches
                path.unlink()
        return freed


def keep(root: Path) -> set[str]:
    """DVC's hashes of what is needed: by the workspace, every ref of git (branches, tags, experiments, the stash), and
    every registered model. Raises ValueError where git or a registry does not answer."""
    return _workspace(root) | _committed(root) | _registered(root)


def unneeded(cache: Path, hashes: Iterable[str]) -> list[Path]:
    """Files of DVC's cache that are neither among `hashes` nor listed by a directory that is."""
    wanted = set(hashes)
    for name in [h for h in wanted if h.endswith(".dir")]:
        listing = cache / name[:2] / name[2:]
        if listing.is_file():
            wanted |= {entry["md5"] for entry in json.loads(listing.read_text())}
    return sorted(path for path in cache.glob("??/*") if path.parent.name + path.name not in wanted)


def _workspace(root: Path) -> set[str]:
    """What the workspace's dvc.lock and *.dvc name, wherever below `root` they lie."""
    hashes: set[str] = set()
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in APART]
        for name in filter(NAMES.search, names):
            hashes |= _hashes((Path(folder) / name).read_text(errors="replace"))
    return hashes


def _committed(root: Path) -> set[str]:
    """The same of every commit that `_refs` lists. Each version of a file is read once, all by one process."""
    blobs: set[str] = set()
    for ref in _refs(root):
        listed = _git(root, "ls-tree", "-r", "-z", ref, "--", ".").split("\0")[:-1]
        for facts, _, path in (entry.partition("\t") for entry in listed):
            _, kind, name = facts.split()
            if kind == "blob" and NAMES.search(path):
                blobs.add(name)
    text = _git(root, "cat-file", "--batch", given="\n".join(sorted(blobs))) if blobs else ""
    if missing := re.findall("^(.*) missing$", text, re.MULTILINE):
        raise ValueError(f"git does not say what is still needed, so nothing is offered: no object {missing[0]}")
    return _hashes(text)


def _hashes(text: str) -> set[str]:
    """Every DVC hash in a dvc.lock or *.dvc: of outputs and dependencies, of the files of a directory that is listed in
    place, and also where a merge left two halves that no parser reads. A word too many keeps nothing but a file."""
    return set(HASH.findall(text))


def _registered(root: Path) -> set[str]:
    """What the models came from that are registered in the project's store, or in one that runs of it were sent to.

    A shell that does not know the store would ask an empty database, which MLflow makes on the spot: nothing here does.
    """
    own = store.address(root)
    notes = records.pipeline_notes(root)  # they outlive the records
    named = [*map(records.store_of, records.folders(root)), *(note["store"] for note in notes)]
    hashes: set[str] = set()
    for uri in dict.fromkeys([own, *named]):
        database = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:") and not database.is_file():
            if uri == own and not (root / "dvc.lock").is_file() and not any((root / CACHE).glob("??/*")):
                continue  # DVC made nothing here yet
            raise ValueError(
                f"no registry at {uri}, so what registered models need is not known and nothing is offered; "
                f"{_remedy(uri, own)}"
            )
        try:
            hashes |= origin.needed(store.connect(uri))
        except Exception as error:  # whatever a store, a network or a proxy may raise
            why = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"the registry {uri} does not answer, so nothing is offered ({type(error).__name__}: {why}); "
                f"start it, or {_remedy(uri, own)}"
            ) from error
    return hashes


def _remedy(uri: str, own: str) -> str:
    if uri == own:
        return "set MLFLOW_TRACKING_URI to the store that models are registered in"
    return f"where it is gone for good, `siren track flush --redirect {uri}` sends its runs to {own} instead"


def _checkpoints(root: Path) -> Found:
    """Trainings that never ended; one that is at work touches its folder, and holds its stage's lock besides."""
    folders = sorted((root / ".siren" / "checkpoints").glob("*/*"))
    return [(CHECKPOINTS, folder) for folder in folders if _idle_stage(root, folder, _stage(folder.parent.name))]


def _stage(name: str) -> str:
    """The stage that keeps checkpoints under this name: of several networks, or of several transformers."""
    stage, _, part = name.partition("-")
    return f"{stage}@{part}" if stage == "stage1" else stage


def _pieces(root: Path) -> Found:
    """What data stages that never ended had finished."""
    folders = sorted((root / ".siren" / "pieces").glob("*/*"))
    return [(PIECES, folder) for folder in folders if _idle_stage(root, folder, folder.parent.name)]


def _arms(root: Path) -> Found:
    """What `siren claims` and `siren paper` keep, while neither is at work. A result is a JSON beside the weights."""
    with locks.attempt(locks.place(root, "claims")) as free:
        folders = sorted(path for path in (root / ".siren" / "claims").glob("*") if path.is_dir()) if free else []
    return [(ARMS if any(folder.glob("*.json")) else BEGUN, folder) for folder in folders]


def _halves(root: Path) -> Found:
    """What killed writers left, but for what goes with a folder of checkpoints or pieces."""
    apart = ("checkpoints", "pieces")
    found = (path for name in WRITTEN for path in leftovers(root / name))
    return [(HALVES, path) for path in found if path.relative_to(root).parts[1] not in apart]


def _idle_stage(root: Path, folder: Path, name: str) -> bool:
    """Whether nobody is at the stage that `folder` belongs to."""
    with locks.attempt(locks.place(root, name)) as free:
        return free and folder.is_dir()


def _records(root: Path) -> Found:
    """Local copies of runs that MLflow has whole."""
    ended = (f for f in records.folders(root) if records.read_record(f)["status"] != records.RUNNING)
    return [(RECORDS, folder) for folder in ended if records.read_state(folder)["done"]]


def _idle(root: Path) -> None:
    """Raise ValueError where DVC is at work: what it is about to name in dvc.lock is in the cache by then."""
    path = root / ".dvc" / "tmp" / "rwlock"
    held = json.loads(path.read_text() or "{}") if path.is_file() else {}
    holders = [entry for kind in held.values() for e in kind.values() for entry in (e if isinstance(e, list) else [e])]
    if busy := [h for h in holders if lineage.running(int(h["pid"]))]:
        raise ValueError(f"dvc is at work here (pid {busy[0]['pid']}: {busy[0].get('cmd', '')}); try again later")


def _refs(root: Path) -> list[str]:
    """HEAD, and the commits of all refs; nothing of them where there is no repository.

    A stash is one ref, whose older entries stand in the ref's log alone; DVC's queue of experiments is such a ref. The
    parents of an entry hold what was in the index and what git did not track.
    """
    form = "%(objectname) %(objecttype) %(*objecttype) %(refname)"  # the last type is of what a tag stands for
    listed = [line.split() for line in _git(root, "for-each-ref", f"--format={form}").splitlines()]
    commits = ["HEAD", *(name for name, *kinds, _ in listed if kinds[-1] == "commit")]
    for ref in (ref for *_, ref in listed if ref.endswith(("/stash", "/failed"))):
        commits += _git(root, "rev-list", "-g", "--parents", ref).split()
    return list(dict.fromkeys(commits))


def _git(root: Path, *arguments: str, given: str = "") -> str:
    """What git prints; nothing where there is no repository, or no commit yet. Raises ValueError where it fails."""
    words = {**os.environ, "LC_ALL": "C"}
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=root, env=words, input=given, capture_output=True, text=True, errors="replace")
    if done.returncode and not NOTHING.search(done.stderr):
        raise ValueError(f"git does not say what is still needed, so nothing is offered: {done.stderr.strip()}")
    return done.stdout


def _touched(path: Path) -> float:
    times = [p.stat().st_mtime for p in (path, *path.rglob("*"))] if path.is_dir() else [path.stat().st_mtime]
    return max(times)


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
