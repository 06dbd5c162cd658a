"""What can be deleted: `siren gc`. Never anything that a registered model came from, that a branch, a tag or any other
ref of git names (DVC's experiments are such refs), or that is not sent to MLflow yet.

DVC's own `dvc gc` knows the workspace and commits; it does not know the registry, whose versions stand on data that may
be in no commit. Where the registry or git does not answer, or DVC is at work, nothing is offered.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

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
WRITTEN = (".siren", "data", "models", "outputs", "reports")  # where half-written files may lie
Found = list[tuple[str, Path]]  # what, and a file or folder


def collect(root: Path, days: float) -> Found:
    """Files and folders that nothing needs any more and nobody touched for `days`.

    Raises ValueError where DVC is at work or git does not answer; the store's own errors where the registry does not.
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
    every registered model."""
    texts = [(root / "dvc.lock").read_text()] if (root / "dvc.lock").is_file() else []
    refs = _refs(root)
    texts += [_git(root, "show", f"{ref}:./dvc.lock").stdout for ref in refs]  # nothing where a commit has none
    hashes = {str(out.get("md5") or "") for text in texts for out in _outs(text)}
    return hashes | origin.needed(store.connect(store.address(root)))


def unneeded(cache: Path, hashes: Iterable[str]) -> list[Path]:
    """Files of DVC's cache that are neither among `hashes` nor listed by a directory that is."""
    wanted = set(hashes)
    for name in [h for h in wanted if h.endswith(".dir")]:
        listing = cache / name[:2] / name[2:]
        if listing.is_file():
            wanted |= {entry["md5"] for entry in json.loads(listing.read_text())}
    return sorted(path for path in cache.glob("??/*") if path.parent.name + path.name not in wanted)


def _outs(text: str) -> list[dict[str, Any]]:
    stages = (yaml.safe_load(text) or {}).get("stages", {})
    return [out for entry in stages.values() for key in ("outs", "deps") for out in entry.get(key, [])]


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
    """The commits of all refs and of HEAD; none where there is no repository. Raises ValueError where git fails."""
    done = _git(root, "for-each-ref", "--format=%(objectname)")
    if done.returncode == 0:
        return list(dict.fromkeys(["HEAD", *done.stdout.split()]))
    if "not a git repository" in done.stderr:
        return []
    raise ValueError(f"git does not say what is still needed, so nothing is offered: {done.stderr.strip()}")


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    words = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, env=words)


def _touched(path: Path) -> float:
    times = [p.stat().st_mtime for p in (path, *path.rglob("*"))] if path.is_dir() else [path.stat().st_mtime]
    return max(times)


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
