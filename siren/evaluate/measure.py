"""Any system's sounds against a reference: the field's figures from two folders and a manifest.

The protocol is audioldm_eval's at 16 kHz with this project's networks or published ones; every figure is named after
the network that made it, has an interval over clips, and stands in a record that says what it was made from. Intervals
draw whole clips, generated and reference together. `real` is the reference judged like a system: the ceiling of
the scores that need no reference.
Shapes: N clips · E examples of a clip · F features · C classes · K clips of a prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from siren.evaluate import best_of, bootstrap, distances, judging, metrics
from siren.evaluate.features import PAIRED, Features, Listener, Network, Preparation, find_networks
from siren.evaluate.folders import Sounds, gather, hash_of, manifest_in, named, read_manifest
from siren.hashing import file_sha256

SET_DRAWS_SHARE = 10  # a distance of sets costs a decomposition: one resample for ten that a mean gets
LOWER = ("fd", "fad", "fad_infinity", "kad", "kl")  # is better
FEW_CLIPS = 500  # below: FD and FAD of different N are far from comparable, and the record says so


@dataclass(frozen=True)
class Request:
    generated: Path
    reference: Path
    manifest: Path | None = None  # None: the one table in the folder of references
    networks: Path = Path("models")
    cache: Path = Path(".siren/features")
    takes: tuple[Path, ...] = ()  # further clips of the same prompts, for best of N
    candidates: int = 1  # clips that the system made for each prompt to choose from, as its makers say
    preparation: Preparation = field(default_factory=Preparation)
    batch_size: int = 16
    resamples: int = 1000
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("candidates", "batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class _Heard:
    """What one judge made of both folders, and what its figures need beside that."""

    network: Network
    generated: Features
    reference: Features
    prompts: Sequence[dict[str, Any]]
    silent: dict[str, np.ndarray]
    request: Request
    notes: list[str]  # added to


@dataclass(frozen=True)
class Measured:
    record: dict[str, Any]  # plain nested data, for JSON; equal for equal sounds, networks and request
    forwards: int  # batches that went through a network: 0 where the cache had everything
    seconds: dict[str, float]  # where the time went


def measure(request: Request) -> Measured:
    """Every figure that the networks at hand allow. Raises ValueError for whatever is missing or does not fit."""
    started = perf_counter()
    networks = find_networks(request.networks)
    manifest = request.manifest or manifest_in(request.reference)
    prompts = read_manifest(manifest)
    ids = [prompt["id"] for prompt in prompts]
    folders = {"generated": request.generated, **{f"take {i}": p for i, p in enumerate(request.takes, 2)}}
    sounds = {label: gather(folder, ids, label, exact=True) for label, folder in folders.items()}
    sounds["reference"] = gather(request.reference, ids, "reference")
    listener = Listener(request.cache, request.preparation, request.batch_size, request.device)
    silent = {label: _silent(listener, found, ids, label) for label, found in sounds.items()}
    figures: dict[str, Any] = {}
    scores: dict[str, dict[str, np.ndarray]] = {}  # paired networks: of each folder, one cosine a clip
    missing = {"cnn14": "FD, KAD, KL and IS", "vggish": "FAD", "clap": "CLAP score", "imagebind": "ImageBind score"}
    notes = [
        f"no {what}: no {kind} in {request.networks}" for kind, what in missing.items() if not _has(networks, kind)
    ]
    for network in networks:
        labels = sounds if network.kind in PAIRED else ("generated", "reference")
        heard = {label: listener.hear(network, sounds[label], label) for label in labels}
        if network.kind in PAIRED:
            texts = listener.read(network, [prompt["caption"] for prompt in prompts])
            key = f"{network.kind}@{network.name}"
            scores[key] = {k: metrics.clap_score(texts, np.stack(h["embedding"])) for k, h in heard.items()}
            figures |= _pair_figures(key, scores[key], request)
        else:
            of_sets = _cnn14_figures if network.kind == "cnn14" else _vggish_figures
            figures |= of_sets(_Heard(network, heard["generated"], heard["reference"], prompts, silent, request, notes))
    listener.seconds["everything"] = perf_counter() - started
    record = {
        "protocol": _protocol(request),
        "prompts": len(ids),
        "list_sha256": hash_of(ids),
        "manifest_sha256": file_sha256(manifest),
        "candidates": request.candidates,
        "sounds": {k: {**s.facts(), "silent": np.array(ids)[silent[k]].tolist()} for k, s in sounds.items()},
        "networks": {f"{n.kind}@{n.name}": n.facts() for n in networks},
        "figures": figures,
        "notes": [*notes, *_warnings(sounds, silent, ids)],
    }
    if request.takes:
        record["best_of"] = _curves(scores, request)
    return Measured(record, listener.forwards, dict(listener.seconds))


def _has(networks: Sequence[Network], kind: str) -> bool:
    return any(network.kind == kind for network in networks)


def _protocol(request: Request) -> dict[str, Any]:
    return {
        **asdict(request.preparation),
        "channel": "first",
        "constant_part": "removed before resampling, for judges",
        "is_seed": metrics.IS_SEED,
        "kl_epsilon": metrics.KL_EPSILON,
        "silent_dbfs": metrics.SILENT_DBFS,
        "resamples": request.resamples,
        "seed": request.seed,
        "level": bootstrap.LEVEL,
    }


def _silent(listener: Listener, sounds: Sounds, ids: Sequence[str], label: str) -> np.ndarray:
    peaks = listener.peaks(sounds, label)
    return np.asarray(peaks < 10 ** (metrics.SILENT_DBFS / 20))


def _warnings(sounds: dict[str, Sounds], silent: dict[str, np.ndarray], ids: Sequence[str]) -> list[str]:
    notes = []
    for label, found in sounds.items():
        facts = found.facts()
        if quiet := int(silent[label].sum()):
            quiet_ones = named(np.array(ids)[silent[label]].tolist())
            notes.append(f"{label}: silent: {quiet_ones} ({quiet} of {len(ids)}); FD and KL can look very good so")
        if facts["channels"][1] > 1:
            notes.append(f"{label}: of {facts['channels'][1]} channels the first is heard, as audioldm_eval does it")
        if facts["identical"]:
            notes.append(f"{label}: {facts['identical']} files are byte for byte another's")
        if found.unlisted:
            notes.append(f"{label}: {len(found.unlisted)} sounds that the manifest does not list were left out")
    count = len(sounds["generated"].paths)
    if count < FEW_CLIPS:
        notes.append(f"{count} clips: FD and FAD grow as N falls, so compare them at this N and list only, or use KAD")
    return notes


def _cnn14_figures(heard: _Heard) -> dict[str, Any]:
    name, request = heard.network.name, heard.request
    x, y = (np.stack(h["features"]).astype(np.float64) for h in (heard.reference, heard.generated))
    p, q = (np.stack(h["logits"]).astype(np.float64) for h in (heard.reference, heard.generated))
    kad = distances.kad_of(x, y)
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "fd": lambda counts: metrics.frechet_distance(x, y, counts, counts),
        "kad": lambda counts: kad(counts, counts),
        "is": lambda counts: metrics.inception_score(np.repeat(q, counts, axis=0)).mean,
    }
    least = {"fd": 0.0, "kad": -np.inf, "is": 1.0}
    found = {f"{k}@{name}": _set(s, len(x), request, k, least[k]) for k, s in statistics.items()}
    score, ceiling = metrics.inception_score(q), metrics.inception_score(p)
    if score.note:
        heard.notes.append(f"IS: {score.note}")
    found[f"is@{name}"] |= {"std": score.std, "splits": score.splits, "real": ceiling.mean}
    found[f"kl@{name}"] = _mean(metrics.kl_softmax(p, q), request)
    return found | _events(heard, {"reference": p, "generated": q})


def _events(heard: _Heard, logits: dict[str, np.ndarray]) -> dict[str, Any]:
    """How often the judge names the label of a clip that has one which it knows. Silent clips name nothing."""
    places = judging.positions([prompt["labels"] for prompt in heard.prompts], heard.network.labels)
    rows = np.array([i for i, found in enumerate(places) if found is not None and len(found) == 1], int)
    if len(rows) == 0:
        return {}
    event = np.array([places[i][0] for i in rows])
    right = {label: judging.named(v[rows], event) & ~heard.silent[label][rows] for label, v in logits.items()}
    figure = _mean(right["generated"], heard.request) | {"real": float(right["reference"].mean())}
    return {f"event_accuracy@{heard.network.name}": figure}


def _vggish_figures(heard: _Heard) -> dict[str, Any]:
    name, count = heard.network.name, len(heard.prompts)
    (x, clip_x), (y, clip_y) = _pooled(heard.reference["examples"]), _pooled(heard.generated["examples"])

    def fad(counts: np.ndarray) -> float:
        return metrics.frechet_distance(x, y, counts[clip_x], counts[clip_y])

    found = {f"fad@{name}": {**_set(fad, count, heard.request, "fad"), "examples": len(y)}}
    endless = distances.fad_infinity(x, y, heard.request.seed)
    if endless is None:
        heard.notes.append(f"no FAD-infinity: {len(y)} examples are fewer than {2 * distances.INFINITY_LEAST}")
    else:
        found[f"fad_infinity@{name}"] = endless.record(count)
    return found


def _pooled(examples: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All examples of all clips [M, F], and which clip each is of [M]."""
    return np.concatenate(examples).astype(np.float64), np.repeat(np.arange(len(examples)), [len(e) for e in examples])


def _pair_figures(key: str, scores: dict[str, np.ndarray], request: Request) -> dict[str, Any]:
    return {key: _mean(scores["generated"], request) | {"real": float(scores["reference"].mean())}}


def _curves(scores: dict[str, dict[str, np.ndarray]], request: Request) -> dict[str, Any]:
    """What each network says of the best of n clips, for every network that may choose them; n clips cost n times."""
    takes = {
        key: np.stack([v for label, v in found.items() if label != "reference"], 1) for key, found in scores.items()
    }
    return {
        f"chosen by {ranker}": {
            key: [{"n": n, **_mean(column, request)} for n, column in enumerate(best_of.curve(ranking, told).T, 1)]
            for key, told in takes.items()
        }
        for ranker, ranking in takes.items()
    }


def _set(
    statistic: Callable[[np.ndarray], float], count: int, request: Request, name: str, least: float = 0.0
) -> dict[str, Any]:
    draws = max(1, request.resamples // SET_DRAWS_SHARE)
    interval = bootstrap.of_counts(statistic, count, draws, request.seed, least=least, label=f"{name}: interval")
    return interval.record(count)


def _mean(values: np.ndarray, request: Request) -> dict[str, Any]:
    return bootstrap.mean(values, request.resamples, request.seed).record(len(values))


def rows(record: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """The figures as text: (name with the direction that is better, value, interval, of the reference, clips)."""
    chosen = {
        f"{key}, best of {point['n']} {by}": point
        for by, told in record.get("best_of", {}).items()
        for key, points in told.items()
        for point in points
    }
    return [
        (
            f"{name} {'↓' if name.split('@')[0] in LOWER else '↑'}",
            f"{figure['value']:.4g}",
            f"{figure['low']:.4g} to {figure['high']:.4g}",
            f"{figure['real']:.4g}" if "real" in figure else "",
            str(figure["count"]),
        )
        for name, figure in {**record["figures"], **chosen}.items()
    ]
