"""What networks make of sound files, kept by the content of the file and never by its folder or name.

A feature's key is the SHA-256 of the file's bytes, of the network (its sidecar, which holds that of the weights) and
of how the sound was prepared; a caption's is that of its text. So a clip that was made anew in the same folder is
heard anew, and a second measurement loads no network at all.

Judges hear a clip as audioldm_eval feeds them: without its mean, resampled to 16 kHz, zero-padded to two seconds.
CLAP and ImageBind hear it as it is. Every clip keeps its own length: a batch holds clips of one length.
Shapes: B batch · S samples · E examples of a clip · F features · C classes.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siren import audio
from siren.atomic import replacing
from siren.evaluate.folders import Sounds, read
from siren.networks import clap, imagebind, judge, store
from siren.progress import track

JUDGES = ("cnn14", "vggish")
PAIRED = ("clap", "imagebind")  # kinds with a text side
HEARING: dict[str, Callable[[Any, Tensor], dict[str, Tensor]]] = {
    "cnn14": lambda network, wav: network(wav)._asdict(),  # features [B, F], logits [B, C]
    "vggish": lambda network, wav: {"examples": network(wav)},  # [B, E, F]
    "clap": lambda network, wav: {"embedding": network.embed_audio(wav)},  # [B, F]
    "imagebind": lambda network, wav: {"embedding": network.embed_audio(wav)},
}
OPENERS: dict[str, Callable[[Path, str], Any]] = {
    "cnn14": judge.load,
    "vggish": judge.load,
    "clap": clap.load,
    "imagebind": imagebind.load,
}
Features = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Preparation:
    """How a sound is brought to a network. The resampler alone can move FD by tens: it is part of every record."""

    resampler: str = "hann"
    min_seconds: float = 2.0  # judges only, as audioldm_eval; 0 gives what the stage `evaluate` does

    def __post_init__(self) -> None:
        if self.resampler not in RESAMPLERS:
            raise ValueError(f"resampler is {self.resampler!r}; there are {', '.join(RESAMPLERS)}")
        if not 0 <= self.min_seconds <= 60:
            raise ValueError(f"min_seconds is {self.min_seconds}; it lies in [0, 60], the field's is 2")

    def __call__(self, wav: np.ndarray, source: int, target: int, judged: bool) -> np.ndarray:
        """A clip as a network hears it. [S] → float32 [S']"""
        if judged:
            wav = wav - wav.mean(dtype=np.float64)  # before resampling, over the whole file
        wav = RESAMPLERS[self.resampler](wav.astype(np.float32), source, target)
        least = round(self.min_seconds * target) if judged else 0
        return np.pad(wav, (0, max(0, least - len(wav))))


def _hann(wav: np.ndarray, source: int, target: int) -> np.ndarray:
    """torchaudio's default: a sinc of six zeros under a Hann window, what audioldm_eval resamples with."""
    if source == target:
        return wav
    from torchaudio.functional import resample

    return np.asarray(resample(torch.from_numpy(wav), source, target).numpy())


RESAMPLERS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {"hann": _hann, "soxr": audio.resample}


@dataclass(frozen=True)
class Network:
    """A saved network, not loaded yet."""

    kind: str
    name: str  # of its metrics
    sha256: str  # of its weights
    identity: str  # of its weights, configuration and tokeniser
    licence: str
    origin: dict[str, str]  # name and SHA-256 of the published weights, if it was made from such
    labels: list[str]
    sample_rate: int  # at which it takes waveforms
    folder: Path

    def facts(self) -> dict[str, str]:
        return {"kind": self.kind, "sha256": self.sha256, "licence": self.licence, **self.origin}


def find_networks(folder: str | Path) -> list[Network]:
    """Every judge, CLAP and ImageBind saved in `folder` or one or two folders below, ordered by kind and name.

    A judge has the name of its settings; others that of the published weights, or of their folder and a hash.
    Raises ValueError where there are none, or where two share a kind and a name.
    """
    folder, found = Path(folder), []
    for sidecar in sorted([*folder.glob(f"*/{store.SIDECAR}"), *folder.glob(f"*/*/{store.SIDECAR}")]):
        try:
            facts = store.read_sidecar(sidecar.parent)
        except ValueError:
            continue  # of another library; whoever wants it here saves it through a stage
        if facts["kind"] in HEARING:
            found.append(_network(sidecar.parent, facts))
    if not found:
        raise ValueError(f"no judge, CLAP or ImageBind in {folder}; `dvc repro judge clap imagebind` makes them there")
    if len({(n.kind, n.name) for n in found}) < len(found):
        names = ", ".join(f"{n.name} ({n.folder})" for n in found)
        raise ValueError(f"two networks in {folder} have one name: {names}; keep one, or name them in their settings")
    return sorted(found, key=lambda n: (list(HEARING).index(n.kind), n.name))


def _network(folder: Path, facts: dict[str, Any]) -> Network:
    tokenizer = folder / "tokenizer.json"
    whole = [facts["kind"], facts["config"], facts["sha256"], tokenizer.read_text() if tokenizer.is_file() else ""]
    config, extra = facts["config"], facts["extra"]
    published = store.published_name(extra.get("weights", ""))
    if facts["kind"] in JUDGES:
        name, rate = config["architecture"].get("name", facts["kind"]), judge.SAMPLE_RATE
    else:
        own = config.get("architecture", {}).get("name")
        name, rate = own or published or f"{folder.name}-{facts['sha256'][:8]}", config["sample_rate"]
    return Network(
        kind=facts["kind"],
        name=name,
        sha256=facts["sha256"],
        identity=hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest(),
        licence=str(extra.get("licence", "unknown")),
        origin={key: extra[key] for key in ("weights", "weights_sha256") if key in extra},
        labels=config.get("labels", []),
        sample_rate=rate,
        folder=folder,
    )


@dataclass
class Listener:
    """Features of files and captions, from the cache where they are there."""

    cache: Path
    preparation: Preparation
    batch_size: int
    device: str = "cpu"
    forwards: int = 0  # batches that went through a network
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # where the time went
    _open: dict[Path, Any] = field(default_factory=dict)

    def hear(self, network: Network, sounds: Sounds, label: str) -> Features:
        """Float32 arrays of each clip, by the names that HEARING gives."""
        folder = self._place(network, "sounds", {**asdict(self.preparation), "source": "first channel"})
        first = {sha: row for row, sha in reversed(list(enumerate(sounds.hashes)))}
        missing = [row for sha, row in first.items() if not (folder / f"{sha}.safetensors").is_file()]
        batches = list(self._batches(sounds, missing))
        for rows in track(batches, f"{network.name}: {label}", unit="batch") if batches else ():
            started = perf_counter()
            wavs = [self._prepared(network, sounds, row) for row in rows]
            self.seconds["reading"] += perf_counter() - started
            result = self._forward(network, HEARING[network.kind], torch.from_numpy(np.stack(wavs)).to(self.device))
            for i, row in enumerate(rows):
                _write(folder / f"{sounds.hashes[row]}.safetensors", {k: v[i] for k, v in result.items()})
        return self._load([folder / f"{sha}.safetensors" for sha in sounds.hashes])

    def read(self, network: Network, captions: Sequence[str]) -> np.ndarray:
        """Text embeddings. [N, F]"""
        folder = self._place(network, "captions", {})
        files = [folder / f"{hashlib.sha256(caption.encode()).hexdigest()}.safetensors" for caption in captions]
        missing = {f: c for f, c in zip(files, captions, strict=True) if not f.is_file()}
        todo = list(missing.items())
        for start in range(0, len(todo), self.batch_size):
            paths, texts = zip(*todo[start : start + self.batch_size], strict=True)
            result = self._forward(network, _read_texts, list(texts))
            for path, row in zip(paths, result["embedding"], strict=True):
                _write(path, {"embedding": row})
        return np.stack(self._load(files)["embedding"]).astype(np.float64)

    def peaks(self, sounds: Sounds, label: str) -> np.ndarray:
        """The highest absolute sample of each clip. [N]"""
        folder = self.cache / "peaks"
        files = [folder / f"{sha}.safetensors" for sha in sounds.hashes]
        todo = [(f, p) for f, p in zip(files, sounds.paths, strict=True) if not f.is_file()]
        for file, path in track(todo, f"{label}: reading", unit="file") if todo else ():
            _write(file, {"peak": np.abs(read(path)).max(keepdims=True)})
        return np.concatenate(self._load(files)["peak"])

    def _batches(self, sounds: Sounds, rows: Sequence[int]) -> Iterator[list[int]]:
        """Rows of one length, at most `batch_size` together."""
        groups = defaultdict(list)
        for row in rows:
            groups[sounds.lengths[row]].append(row)
        for _, group in sorted(groups.items()):
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def _prepared(self, network: Network, sounds: Sounds, row: int) -> np.ndarray:
        return self.preparation(
            read(sounds.paths[row]), sounds.sample_rate, network.sample_rate, judged=network.kind in JUDGES
        )

    @torch.inference_mode()
    def _forward(
        self, network: Network, function: Callable[[Any, Any], dict[str, Tensor]], batch: Any
    ) -> dict[str, np.ndarray]:
        started = perf_counter()
        if network.folder not in self._open:
            self._open[network.folder] = OPENERS[network.kind](network.folder, self.device)
        found = {k: v.float().cpu().numpy() for k, v in function(self._open[network.folder], batch).items()}
        self.forwards += 1
        self.seconds[network.name] += perf_counter() - started
        return found

    def _place(self, network: Network, what: str, more: dict[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps([network.identity, what, more], sort_keys=True).encode()).hexdigest()
        return self.cache / f"{network.kind}-{what}-{key[:16]}"

    def _load(self, files: Sequence[Path]) -> Features:
        from safetensors.numpy import load_file

        started = perf_counter()
        known = {file: load_file(file) for file in dict.fromkeys(files)}
        self.seconds["cache"] += perf_counter() - started
        return {name: [known[file][name] for file in files] for name in known[files[0]]}


def _read_texts(network: Any, captions: list[str]) -> dict[str, Tensor]:
    return {"embedding": network.embed_text(captions)}


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    with replacing(path) as partial:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial)
