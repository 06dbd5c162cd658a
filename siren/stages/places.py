"""Where the files are, what they were made with, and the accounts that stages leave of their work.

The only paths of the project; they are those of `dvc.yaml`.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from siren import tracking
from siren.atomic import write_text
from siren.config import Config, to_dict
from siren.tracking import lineage

CLIPS = Path("data/clips")
SEGMENTS = Path("data/segments")
CAPTIONS = Path("data/captions")
SCORES = Path("data/scores")
SPLITS = Path("data/splits")
TOKENS = Path("data/tokens")
MODELS = Path("models")
SAMPLES = Path("outputs/samples")
REPORTS = Path("reports")
NETWORKS = ("codec", "clap", "imagebind", "judge")  # each a folder of models/ and a file of reports/networks/
EARS = {"cnn14": "panns", "vggish": "vggish"}  # the evaluation's judges, by their folders in models/judge
CLAIMS = Path(".siren/claims")  # what the experiments of the paper have finished
# Outside every output, so that DVC leaves them to a stage that it repeats.
CHECKPOINTS = Path(".siren/checkpoints")
PIECES = Path(".siren/pieces")
HASHES = Path(".siren/hashes.json")
DOWNLOADS = Path(".siren/downloads")  # may be a link to a larger disk
CODE = Path(__file__).resolve().parents[2]  # the folder that siren/ is in
EXAMPLES = 8  # captions of a captioner that are kept with their sounds
SHARDS_AT_ONCE = 2  # of segments, 256 MB of sound: what one worker captions or scores between two reports


def aligned_folders(config: Config) -> list[Path]:
    """All transformers of the aligned model: those that alignment moved, and stage 1's. ValueError for none of them."""
    moved = {path.parent.name: path.parent for path in (MODELS / "aligned").glob("*/model.safetensors")}
    if not moved:
        raise ValueError(f"no aligned transformer in {MODELS / 'aligned'}; run `siren align`")
    return [moved.get(folder.name, folder) for folder in stage1_folders(config)]


def network_names(config: Config) -> dict[str, str]:
    """What metrics call the text-audio networks: the published weights they have, or kind and scale. Judges know."""
    from siren.networks.store import published_name

    chosen = {kind: getattr(config.networks, kind).weights for kind in ("clap", "imagebind")}
    published = {kind: weights for kind, weights in chosen.items() if weights and not Path(weights).is_dir()}
    return {kind: published_name(published[kind]) if kind in published else f"{kind}-{config.scale}" for kind in chosen}


def data_licences() -> list[dict[str, Any]]:
    """Clips by source and licence, for the model card."""
    import pyarrow.parquet as pq

    table = pq.read_table(CLIPS / "clips.parquet", columns=["source", "licence"])
    groups = table.group_by(["source", "licence"]).aggregate([([], "count_all")]).to_pylist()
    rows = [{"source": g["source"], "licence": g["licence"], "clips": g["count_all"]} for g in groups]
    return sorted(rows, key=lambda row: (str(row["source"]), str(row["licence"])))


def network_versions(**folders: Path) -> dict[str, str]:
    """Licence of each network that is part of the model, as its sidecar says."""
    from siren.networks.store import read_sidecar

    return {name: str(read_sidecar(path)["extra"].get("licence", "unknown")) for name, path in folders.items()}


def no_network(folder: Path) -> None:
    """A folder that says that the settings ask for no network here; whoever loads it is told its kind."""
    sidecar: dict[str, Any] = {"kind": "none", "config": {}, "sha256": None, "extra": {}}
    write_text(folder / "config.json", json.dumps(sidecar, indent=2) + "\n")


def stage1_folders(config: Config) -> list[Path]:
    return [MODELS / "stage1" / str(k) for k in config.model.transformers]


def num_frames(seconds: float, codec: Any) -> int:
    """Codec frames of a clip of this length, rounded up."""
    return -(-round(seconds * codec.sample_rate) // codec.hop)


def made_with(*splits: str) -> dict[str, str]:
    """What tokens are made of: fingerprints of codec and text encoder, and a hash of the shards of these splits."""
    from siren import shards

    metadata = shards.metadata(TOKENS, splits[0])
    files = [path for split in splits for path in shards.shard_paths(TOKENS, split)]
    return {
        "codec": metadata["codec"],
        "text_encoder": metadata["text_encoder"],
        "tokens": "".join(sha256(path)[:16] for path in files),
    }


def checkpoint(name: str, keep: int = 1, run: tracking.Run | None = None, **identity: Any) -> Any:
    """Where the training `name` keeps its progress; `identity` is all that its result depends on.

    The run continues that of the process which left a checkpoint there.

    DVC runs a stage again because something that it depends on has changed, so there it starts afresh. A person who
    types the stage by hand is told that an unfinished training of other settings is in the way.
    """
    from siren.train.loop import Checkpoint

    plain = {key: to_dict(part) if is_dataclass(part) else part for key, part in identity.items()}
    checkpoint = Checkpoint(CHECKPOINTS / name, plain, keep, restart="DVC_STAGE" in os.environ)
    if run:
        run.follow(checkpoint.folder, resumes=checkpoint.latest() is not None)
    return checkpoint


def hashes(folders: list[Path]) -> list[str]:
    return [sha256(folder / "model.safetensors") for folder in folders]


def sha256(path: Path) -> str:
    from siren.hashing import remembered_sha256

    return remembered_sha256(path, HASHES)


def pieces(name: str, made_with: Sequence[Path], *settings: Any) -> Path:
    """Where the pieces of a data stage wait until all are made: outside every output, so that DVC leaves them there.

    They belong to these inputs and settings, and to the code that dvc.yaml says the stage depends on (all of it where
    there is no dvc.yaml); pieces of others are removed.
    """
    import shutil

    from siren.hashing import digest, file_sha256

    parts = [CODE / part for part in lineage.code(Path(), name) or ["siren"]]
    files = sorted(path for part in parts for path in ([part] if part.is_file() else part.rglob("*.py")))
    code = [(str(path.relative_to(CODE)), file_sha256(path)) for path in files]
    plain = [to_dict(part) if is_dataclass(part) else part for part in settings]
    folder = PIECES / name / digest([code, [sha256(path) for path in made_with], plain])
    for other in (PIECES / name).glob("*"):
        if other != folder:
            shutil.rmtree(other)
    return folder


def made(name: str) -> None:
    """The stage has written all of its result, and that holds: what it kept until then goes."""
    import shutil

    shutil.rmtree(PIECES / name, ignore_errors=True)


def segments() -> list[Path]:
    return sorted(SEGMENTS.glob("segments-*.parquet"))


def saved(*networks: str) -> list[Path]:
    """Weights, sidecars and tokenisers of these networks."""
    return [path for name in networks for path in sorted((MODELS / name).glob("*")) if path.is_file()]


def write_report(name: str, report: dict[str, Any]) -> None:
    """Figures as JSON below reports/, for `dvc metrics`."""
    path = REPORTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def said(name: str, caption: str) -> str:
    """The name of a sound that is kept with what a captioner says of it."""
    return f"{name} {caption.replace('/', ' ')[:80] or '(nothing)'}"


def device() -> str:
    """The accelerator where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def account(
    run: tracking.Run, name: str, folder: Path, counts: dict[str, Any], quarantine: list[dict[str, str]]
) -> dict[str, float]:
    """Write a data stage's quarantine and summary, end it with one line on stdout, and return its figures."""
    from siren import shards

    shards.write_quarantine(folder, quarantine)
    reasons = dict(sorted(Counter(row["reason"] for row in quarantine).items()))
    (folder / "summary.json").write_text(json.dumps(counts | {"reasons": reasons}, indent=1) + "\n")
    why = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    print(
        f"{name}: {counts['in']} in, {counts['out']} out, {counts['quarantined']} quarantined"
        f"{why and f' ({why})'}, {took(run, counts['in'])}"
    )
    return counts | {f"reason/{reason}": count for reason, count in reasons.items()}


def took(run: tracking.Run, count: int) -> str:
    """Time and throughput of a stage, for its last line."""
    return f"{run.seconds:.1f} s, {count / max(run.seconds, 1e-3):.3g} a second"
