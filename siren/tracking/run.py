"""The local record of a run: what a stage writes while it works, append-only and complete without any server.

`.siren/runs/<id>/` holds `run.json` (who, when, settings, lineage, status), `metrics.jsonl` (one line per report) and
`artifacts/` (files as they will appear in MLflow). Files appear under their final name only when they are whole, so
that the exporter (see `export`), which reads all this from another process, never sees half a file.
"""

import json
import os
import re
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siren.atomic import replacing
from siren.config import Config, flatten, to_dict
from siren.tracking import lineage, store, watch
from siren.tracking.records import FAILED, FINISHED, LOG, RUNNING, write_json

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

# What a process may import only if it uses it; a run notes which of these it did.
HEAVY = (
    "dac",
    "dvc",
    "gradio",
    "great_expectations",
    "laion_clap",
    "matplotlib",
    "mlflow",
    "pandas",
    "prefect",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
    "soundfile",
    "soxr",
    "torch",
    "torchaudio",
    "torchvision",
    "transformers",
    "yt_dlp",
)


class Run:
    """One execution of one stage. Its methods write to local files and return at once."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        (folder / "artifacts").mkdir(parents=True)
        self._open(folder, record)
        self._save()

    @classmethod
    @contextmanager
    def reopen(cls, folder: Path) -> Iterator["Run"]:
        """The record of a run that another process keeps and will close, for points and artifacts from this one."""
        run = cls.__new__(cls)
        run._open(folder, json.loads((folder / "run.json").read_text()))
        with run._metrics:
            yield run

    def _open(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder, self.record = folder, record
        self.id: str = record["id"]
        self._lock = threading.Lock()  # the machine is watched from a thread
        self._metrics = open(folder / "metrics.jsonl", "a", buffering=1, encoding="utf-8")  # noqa: SIM115

    @property
    def seconds(self) -> float:
        """Since this process began the stage."""
        return (_now() - self.record["started"]) / 1000

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Points of curves, at `step`. This is the `log` that every training loop takes as an argument."""
        self._append({"step": int(step), "metrics": metrics})

    def summary(self, metrics: dict[str, float]) -> None:
        """Figures that sum the run up; they are shown on the pipeline's run as well, as `<stage>/<name>`."""
        self._append({"step": None, "metrics": metrics})

    def audio(self, name: str, wav: "np.ndarray", sample_rate: int, step: int | None = None) -> None:
        """A sound [S] or [C, S] in [-1, 1]; the exporter adds its spectrogram. `name` may hold a folder: `real/dog`."""
        import soundfile

        with self._new(f"audio/{_stepped(name, step)}.wav") as path:
            soundfile.write(path, wav.T, sample_rate, subtype="PCM_16", format="WAV")

    def figure(self, name: str, figure: "Figure", step: int | None = None) -> None:
        """A matplotlib figure, kept as PNG."""
        with self._new(f"figures/{_stepped(name, step)}.png") as path:
            figure.savefig(path, dpi=110, bbox_inches="tight", format="png")

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """A copy of a file, or of each file of a folder, under `folder` among the run's artifacts."""
        path = Path(path)
        if not path.exists():
            raise ValueError(f"no file or folder {path} to keep as an artifact")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            with self._new("/".join(filter(None, [folder, file.relative_to(path.parent).as_posix()]))) as copy:
                shutil.copyfile(file, copy)

    def tag(self, tags: dict[str, str]) -> None:
        """Facts to find the run by."""
        self.record["tags"].update(tags)
        self._save()

    def follow(self, checkpoints: Path, resumes: bool) -> None:
        """Keep this run's id beside its checkpoints; where it `resumes` from some, continue the run that left them."""
        note = checkpoints / "run"
        if resumes and note.is_file():
            if (left := note.read_text().strip()) != self.id:  # else a worker of this run died and is replaced
                self.record["continues"] = left
                self._save()
            return
        checkpoints.mkdir(parents=True, exist_ok=True)
        note.write_text(self.record.get("continues", self.id))

    def close(self, status: str, error: str | None = None) -> None:
        """End the record. Called by `stage`."""
        self._metrics.close()
        self.record = json.loads((self.folder / "run.json").read_text())  # a worker may have added to it (`reopen`)
        imported = [name for name in HEAVY if name in sys.modules]
        self.record.update(status=status, ended=_now(), error=error, imported=imported)
        self._save()

    def _append(self, entry: dict[str, Any]) -> None:
        metrics = {name: float(value) for name, value in entry["metrics"].items()}
        line = json.dumps({"time": _now(), **entry, "metrics": metrics}) + "\n"
        with self._lock:
            self._metrics.write(line)

    @contextmanager
    def _new(self, name: str) -> Iterator[Path]:
        """A path to write to that becomes the artifact `name` when the block ends well."""
        root = self.folder / "artifacts"
        final = root / name
        if not final.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"artifact name {name!r} leaves the run's folder; use a relative name without '..'")
        with replacing(final) as partial:
            yield partial

    def _save(self) -> None:
        path = self.folder / "run.json"
        if "continues" not in self.record and path.is_file():  # what another process noted, see `reopen`, stays
            told = json.loads(path.read_text())
            self.record |= {key: told[key] for key in ("continues",) if key in told}
        write_json(path, self.record)


@contextmanager
def stage(name: str, config: Config, sections: Sequence[str] = ()) -> Iterator[Run]:
    """Record the run of stage `name` (`stage1@0`) with the settings of `sections` (`("seed", "train.stage1")`).

    No sections means all settings. An exception marks the run FAILED and passes through; a process that dies without
    one is found and marked by the exporter. `SIREN_EXPORT=0` keeps the record local. What the stage prints is kept in
    the run's folder. A second process at the same stage waits for the first; raises OSError where the disk is too full.
    """
    root = lineage.project_root()
    with watch.guard(name):
        run = _begin(name, config, sections, root)
        try:
            with watch.logged(run.folder / LOG), watch.heartbeat(run.record["dvc"], run.log):
                yield run
        except BaseException as error:
            run.close(FAILED, f"{type(error).__name__}: {error}")
            raise
        run.close(FINISHED)


def _begin(name: str, config: Config, sections: Sequence[str], root: Path) -> Run:
    """A new record, and an exporter that follows it."""
    settings, work = flatten(to_dict(config)), lineage.workspace()
    chosen = {k: v for k, v in settings.items() if not sections or any(_inside(k, s) for s in sections)}
    tags = {"stage": name, "scale": config.scale, **lineage.git_tags(work), **lineage.lock_tags(work, name)}
    if os.environ.get("DVC_EXP_NAME"):
        tags["dvc.experiment"] = os.environ["DVC_EXP_NAME"]
    identity = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{name.replace('@', '-')}-{uuid.uuid4().hex[:6]}"
    record = {
        "id": identity,
        "name": name,
        "status": RUNNING,
        "started": _now(),
        "host": socket.gethostname(),
        "process": lineage.process(os.getpid()),
        "dvc": (dvc := lineage.ancestor("dvc")),
        "pipeline": lineage.pipeline(dvc),
        "store": store.address(root),
        "experiment": store.experiment_name(),
        "tags": tags,
        "params": chosen,
        "settings": settings,
    }
    if work != root:
        record["workspace"] = str(work)
    run = Run(root / ".siren" / "runs" / identity, record)
    from siren.tracking import export

    export.start(root)
    return run


def _inside(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _stepped(name: str, step: int | None) -> str:
    """Path parts are cut to what every file system takes, and rid of what means something in an address: a caption may
    well be a name."""
    short = "/".join(part.encode()[:120].decode(errors="ignore") for part in re.sub(r"[#?%\\]", "-", name).split("/"))
    return short if step is None else f"{short}-{step:06d}"


def _now() -> int:
    """Milliseconds since 1970, MLflow's unit."""
    return int(time.time() * 1000)
