"""The local records of runs as their reader sees them: what they hold, and how much of it has been sent.

Beside a record lies `export.json`: its MLflow run, the byte offset in `metrics.jsonl`, the files sent, the status sent.
Pipeline executions have a note each in `.siren/pipelines/`.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siren.atomic import write_text
from siren.tracking import lineage, store

RUNNING, FINISHED, FAILED = "RUNNING", "FINISHED", "FAILED"
LOG = "stage.log"  # in a run's folder: all that the stage printed
UNSENT = {"mlflow_run": None, "offset": 0, "status": RUNNING, "done": False}
BATCH = 500  # lines of metrics.jsonl sent at once


def folders(root: Path) -> list[Path]:
    """The folders of all local records, oldest first."""
    return sorted(p.parent for p in (root / ".siren" / "runs").glob("*/run.json"))


def read_record(folder: Path) -> dict[str, Any]:
    """A run's record; one whose process died without a word is marked FAILED first, on disk."""
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    here = record["host"] == os.uname().nodename
    if record["status"] == RUNNING and here and not lineage.alive(record["process"]):
        record = json.loads((folder / "run.json").read_text())  # it may have ended well between the two looks
        if record["status"] == RUNNING:
            ended = int(max(p.stat().st_mtime for p in folder.iterdir()) * 1000)
            record.update(status=FAILED, ended=ended, error="the process ended without a word (killed?)")
            write_json(folder / "run.json", record)
    return record


def continued(root: Path, record: dict[str, Any]) -> bool:
    """Whether a later record continues this one, or the one that this one continues."""
    identity = record.get("continues") or record["id"]
    others = (json.loads((folder / "run.json").read_text()) for folder in folders(root))
    return any(r.get("continues") == identity and r["started"] > record["started"] for r in others)


def log(root: Path, name: str) -> str:
    """What a run printed: the one with this id, or the last of the stage `name`. Raises ValueError for none."""
    found = [f for f in folders(root) if name in (f.name, json.loads((f / "run.json").read_text())["name"])]
    if not found:
        raise ValueError(f"no run {name!r} in {root / '.siren' / 'runs'}")
    path = found[-1] / LOG
    return path.read_text(errors="replace") if path.is_file() else ""


def read_state(folder: Path) -> dict[str, Any]:
    """How much of a record has been sent."""
    path = folder / "export.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    return dict(UNSENT, files=[])


def save_state(folder: Path, state: dict[str, Any]) -> None:
    write_json(folder / "export.json", state)


def forget(root: Path, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Forget that anything of a record was sent, and the run of its pipeline. Returns the state after that."""
    (folder / "export.json").unlink(missing_ok=True)
    if record["pipeline"]["id"] is not None:
        _pipeline_path(root, record["pipeline"]["id"]).unlink(missing_ok=True)
    return read_state(folder)


def redirect(root: Path, old: str, new: str) -> int:
    """Make the records of the store `old` ones of `new` that nothing was sent of yet: how many.

    Raises ValueError, and changes nothing, where there are none or a stage at work writes one.
    """
    found = [(folder, read_record(folder)) for folder in folders(root)]
    theirs = [(folder, record) for folder, record in found if record["store"] == old]
    if not theirs:
        stores = ", ".join(sorted({record["store"] for _, record in found})) or "none"
        raise ValueError(f"no run here belongs to the store {old}; the stores of the runs here: {stores}")
    if working := [record["name"] for _, record in theirs if record["status"] == RUNNING]:
        raise ValueError(f"{', '.join(working)} is at work and belongs to {old}; redirect its run when it has ended")
    for folder, record in theirs:
        forget(root, folder, record)
        write_json(folder / "run.json", {**record, "store": new})
    for note in pipeline_notes(root):
        if note["store"] == old:  # of an execution whose records are deleted: nothing of it can be sent anew
            _pipeline_path(root, note["id"]).unlink()
    return len(theirs)


def bring(source: Path, root: Path) -> list[Path]:
    """Copy records made on another machine to those of the project at `root` → their folders here.

    `source` is that machine's project, its `.siren/runs`, or one record. Only what such a machine can vouch for comes
    along: not the hashes of a dvc.lock that lay beside the code, because DVC ran nothing there. A run that had not
    ended counts as FAILED; bring it again once it has, and what is new since is sent. Raises ValueError for a folder
    without records, or for this project's own.
    """
    places = (source, source / ".siren" / "runs")
    found = sorted(path.parent for place in places for path in place.glob("*/run.json"))
    found = [source] if (source / "run.json").is_file() else found
    if not found:
        raise ValueError(
            f"no record of a run in {source}; name the project of the machine that trained, or .siren/runs"
        )
    brought = []
    for folder in found:
        here = root / ".siren" / "runs" / folder.name
        if here.resolve() == folder.resolve():
            raise ValueError(f"{folder} is a record of this project; `siren track flush` sends it")
        record = json.loads((folder / "run.json").read_text())
        ended = record.get("ended") or int((folder / "metrics.jsonl").stat().st_mtime * 1000)
        record["tags"] = {
            key: value for key, value in record["tags"].items() if key != "dvc.lock" and not key.startswith("data.")
        } | {"host": record["host"]}
        record.update(status=FAILED if record["status"] == RUNNING else record["status"], ended=ended, dvc=None)
        record.update(pipeline=lineage.STANDALONE, store=store.address(root), experiment=store.experiment_name())
        ours = shutil.ignore_patterns("run.json", "export.json", "spectrograms", ".*")
        shutil.copytree(folder, here, ignore=ours, dirs_exist_ok=True)
        if (here / "export.json").is_file():
            save_state(here, {**read_state(here), "done": False})
        write_json(here / "run.json", record)  # last: a folder with it is a record
        brought.append(here)
    return brought


def store_of(folder: Path) -> str:
    """The store that a record is for."""
    return str(json.loads((folder / "run.json").read_text())["store"])


def caught_up(folder: Path) -> bool:
    """Whether all that a record holds by now has been sent."""
    state = read_state(folder)
    behind = any(True for _ in batches(folder / "metrics.jsonl", state["offset"]))
    files = set(artifact_files(folder)) - set(state["files"])
    status = json.loads((folder / "run.json").read_text())["status"]
    return bool(state["mlflow_run"]) and not behind and not files and status == state["status"]


def artifact_files(folder: Path) -> list[str]:
    """Names of the whole files of a record; a name that begins with a dot is still being written."""
    root = folder / "artifacts"
    files = (p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    return sorted(p.relative_to(root).as_posix() for p in files)


def picture(folder: Path, wav: str) -> Path:
    """Where the exporter keeps the spectrogram of a sound among the artifacts."""
    return folder / "spectrograms" / Path(wav).with_suffix(".png")


def sounds(folder: Path) -> list[tuple[str, Path, Path]]:
    """Name, WAV file and spectrogram of each sound of a record whose spectrogram has been drawn."""
    wavs = (file for file in artifact_files(folder) if file.startswith("audio/") and file.endswith(".wav"))
    found = (
        (wav.removeprefix("audio/")[: -len(".wav")], folder / "artifacts" / wav, picture(folder, wav)) for wav in wavs
    )
    return [entry for entry in found if entry[2].is_file()]


def latest(root: Path, pipeline: str) -> list[tuple[Path, dict[str, Any]]]:
    """The last record of each stage of a pipeline execution, the newest first."""
    read = ((folder, json.loads((folder / "run.json").read_text())) for folder in folders(root))
    last = {record["name"]: (folder, record) for folder, record in read if record["pipeline"]["id"] == pipeline}
    return sorted(last.values(), key=lambda found: found[1]["started"], reverse=True)


def pipeline_note(root: Path, identity: str) -> dict[str, Any] | None:
    """What is known of a pipeline execution: its MLflow run, its process, the status last sent."""
    path = _pipeline_path(root, identity)
    return json.loads(path.read_text()) if path.is_file() else None


def pipeline_notes(root: Path) -> list[dict[str, Any]]:
    """All pipeline executions known here."""
    return [json.loads(path.read_text()) for path in sorted((root / ".siren" / "pipelines").glob("*.json"))]


def save_pipeline(root: Path, note: dict[str, Any]) -> None:
    write_json(_pipeline_path(root, note["id"]), note)


def _pipeline_path(root: Path, identity: str) -> Path:
    return root / ".siren" / "pipelines" / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', identity)}.json"


def batches(path: Path, offset: int) -> "Iterator[tuple[list[bytes], int]]":
    """Whole lines of a growing file from `offset` on, in batches, each with the offset after it."""
    with open(path, "rb") as file:
        file.seek(offset)
        lines: list[bytes] = []
        for line in file:
            if not line.endswith(b"\n"):  # still being written, or its writer was killed
                break
            lines.append(line)
            offset += len(line)
            if len(lines) == BATCH:
                yield lines, offset
                lines = []
        if lines:
            yield lines, offset


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(content, indent=1, default=str))
