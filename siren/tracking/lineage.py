"""Where a run comes from: the git commit, the bytes named in dvc.lock, and the pipeline execution it belongs to.

A pipeline execution is `SIREN_PIPELINE` where it is set (the Prefect flow sets it), else the `dvc` process above this
one, else nothing: a stage called by hand stands alone. Everything here is read, never computed anew: the hashes are
those that DVC wrote.
"""

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

try:
    import psutil
except ModuleNotFoundError:  # a machine that only trains: there neither DVC nor an exporter asks for processes
    psutil = None


STANDALONE: dict[str, Any] = {"id": None, "kind": "standalone", "process": None}  # a run of no pipeline execution


def project_root() -> Path:
    """The folder that holds `.siren/`, `mlflow.db` and `mlartifacts/`: the working directory, in which stages run.

    An experiment that DVC runs in a temporary copy (`dvc exp run --temp`, `--queue`) reports to the project it came
    from, because the copy is deleted afterwards. What it reports is of the copy, see `workspace`.
    """
    here = Path.cwd()
    for parent in here.parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return here


def workspace() -> Path:
    """The folder whose code, settings and dvc.lock this process works with: the nearest one upward with a dvc.yaml.

    The working directory where there is none. Not `project_root`, where DVC works in a temporary copy.
    """
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), here)


def of(record: dict[str, Any], root: Path) -> Path:
    """The workspace of a run, or of a pipeline's note, that lies in the project at `root`; it may be gone by now."""
    return Path(record.get("workspace", root))


def git_tags(folder: Path) -> dict[str, str]:
    """Commit, branch and whether tracked files differ from the commit; empty outside a git repository.

    dvc.lock does not count: the pipeline itself writes it, and its hash is a tag of its own.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock"))
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    return {"git.commit": commit, "git.branch": branch, "git.dirty": str(dirty).lower()}


def _git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # reading must not disturb a commit under way
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def lock_tags(folder: Path, stage: str) -> dict[str, str]:
    """The sha256 of dvc.lock, and the hash of each input of `stage` as the stages before it left them in the lock."""
    lock = folder / "dvc.lock"
    if not lock.is_file():
        return {}
    content = lock.read_bytes()
    stages = _locked(folder)
    made = {out["path"]: _hash(out) for entry in stages.values() for out in entry.get("outs", [])}
    tags = {"dvc.lock": hashlib.sha256(content).hexdigest()}
    for dep in _dependencies(folder, stage, stages):
        for path, digest in made.items():
            if path == dep or path.startswith(f"{dep}/"):
                tags[f"data.in.{path}"] = digest
    return tags


def out_tags(folder: Path, record: dict[str, Any]) -> dict[str, str]:
    """The hash of each output of a finished run, from the entry of its stage in dvc.lock.

    Empty when that entry is about other inputs than the run's: then DVC was stopped before it took the outputs over.
    """
    entry = _locked(of(record, folder)).get(record["name"], {})
    inputs = {f"data.in.{dep['path']}": _hash(dep) for dep in entry.get("deps", [])}
    if any(record["tags"].get(key, digest) != digest for key, digest in inputs.items()):
        return {}
    return {f"data.out.{out['path']}": _hash(out) for out in entry.get("outs", [])}


def all_data(folder: Path) -> dict[str, str]:
    """The hash of everything that the pipeline has made, by path: what a model that comes out of it stands on."""
    entries = _locked(folder).values()
    return {f"data.{out['path']}": _hash(out) for entry in entries for out in entry.get("outs", [])}


def out_bytes(folder: Path, stage: str) -> int:
    """Bytes of the outputs of `stage` when it was last run, as dvc.lock has them; 0 where it was not."""
    return sum(int(out.get("size") or 0) for out in _locked(folder).get(stage, {}).get("outs", []))


def taken_over(folder: Path, record: dict[str, Any]) -> bool:
    """Whether dvc.lock says by now what became of a run that has ended, as far as it ever will."""
    if record["status"] != "FINISHED" or not alive(record["dvc"]):
        return True
    lock = of(record, folder) / "dvc.lock"
    return lock.is_file() and lock.stat().st_mtime * 1000 > record["ended"]


def _locked(folder: Path) -> dict[str, Any]:
    lock = folder / "dvc.lock"
    return dict((yaml.safe_load(lock.read_bytes()) or {}).get("stages", {})) if lock.is_file() else {}


def _dependencies(folder: Path, stage: str, locked: dict[str, Any]) -> list[str]:
    """Dependencies of `stage` (`stage1@0` → the template `stage1`) from dvc.yaml, else from its entry in the lock."""
    pipeline = folder / "dvc.yaml"
    entry = ((yaml.safe_load(pipeline.read_text()) or {}) if pipeline.is_file() else {}).get("stages", {})
    template = entry.get(stage.split("@")[0], {})
    deps = template.get("do", template).get("deps")
    return [str(d) for d in deps] if deps else [d["path"] for d in locked.get(stage, {}).get("deps", [])]


def code(folder: Path, stage: str) -> list[str]:
    """The parts of siren/ that dvc.yaml names as dependencies of `stage`."""
    return [path for path in _dependencies(folder, stage, {}) if path.startswith("siren/")]


def _hash(entry: dict[str, Any]) -> str:
    return str(entry.get("md5") or entry.get("hash") or "")


def pipeline(dvc: dict[str, Any] | None) -> dict[str, Any]:
    """The pipeline execution this process belongs to: its id, kind, and the process it ends with, if that is known."""
    named = os.environ.get("SIREN_PIPELINE")
    if named:
        return {"id": named, "kind": "flow", "process": None}
    if dvc is not None:
        return {"id": f"dvc-{dvc['pid']}-{int(dvc['started'])}", "kind": "dvc", "process": dvc}
    return STANDALONE


def ancestor(program: str) -> dict[str, Any] | None:
    """The nearest process above this one that is `program`, run directly or by python."""
    if psutil is None:
        return None
    for parent in psutil.Process().parents():
        try:
            if any(Path(word).name == program for word in parent.cmdline()[:3]):
                return process(parent.pid)
        except psutil.Error:
            continue
    return None


def process(pid: int) -> dict[str, Any]:
    """A process as something that can be recognised later: pid and start time (pids are reused)."""
    return {"pid": pid, "started": round(psutil.Process(pid).create_time(), 2) if psutil else 0.0}


def known() -> bool:
    """Whether processes can be asked for on this machine."""
    return psutil is not None


def resident_bytes() -> int:
    """Memory of this process; 0 where it cannot be asked for."""
    return int(psutil.Process().memory_info().rss) if psutil else 0


def running(pid: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of somebody else
        pass
    return True


def alive(known: dict[str, Any] | None) -> bool:
    """Whether the process that `process()` described still runs (a zombie does not); None never does."""
    if known is None or psutil is None:
        return False
    try:
        found = psutil.Process(known["pid"])
        same = abs(found.create_time() - known["started"]) < 1.0
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
