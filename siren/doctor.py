"""What a scale costs and what this machine lacks for it: `siren doctor`.

Nothing is loaded, downloaded or started: networks are built on the meta device, servers are asked for a connection and
nothing else. What is missing comes with its remedy. Costs are those of `siren.model.budget`.
"""

import importlib.util
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import torch

from siren.config import Config, Network
from siren.model import budget
from siren.model.transformer import ResidualTransformer
from siren.networks import codec as codecs
from siren.networks.clap.architecture import Architecture as ClapArchitecture
from siren.networks.codec import Codec

TEXT_LENGTH = 16  # tokens of a usual caption; what follows depends little on it
CPU_FLOPS = 1e11  # matrix products a second on one core, in float32: what today's servers reach
DAY = 86400.0
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PACKAGES = {"imagebind": "imagebind", "descript": "dac", "laion": "laion_clap"}  # backend: module it needs
FILES = {  # backend: what the file is, for who has to fetch it
    "cnn14": "Cnn14_16k_mAP=0.438.pth of PANNs (Zenodo 3987831)",
    "vggish": "vggish-10086976.pth of torchvggish",
    "imagebind": "imagebind_huge.pth of facebookresearch/ImageBind (non-commercial licence)",
    "transformers": "the folder of the model hub",
    "laion": "a checkpoint of laion_clap",
    "autocap": "a checkpoint of snap-research/GenAU's AutoCap (non-commercial licence)",
    "descript": "weights_16khz.pth of descript-audio-codec (tag 0.0.5)",
}
SERVERS = {"MLflow": "MLFLOW_TRACKING_URI", "Prefect": "PREFECT_API_URL"}


@dataclass(frozen=True)
class Check:
    """One thing that the settings need. `optional` is missing too, but the pipeline runs without it."""

    name: str
    status: Literal["ok", "missing", "optional"]
    found: str
    remedy: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """`parameters` of one transformer; `training`: bytes and operations of one; `sampling`: bytes of all together."""

    scale: str
    transformers: int
    parameters: dict[str, int]
    total_parameters: int
    training: dict[str, Any]
    sampling: dict[str, Any]
    checks: list[Check]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def missing(self) -> list[Check]:
        return [check for check in self.checks if check.status == "missing"]


def diagnose(config: Config, root: Path = Path()) -> Diagnosis:
    """The cost of these settings, and what the machine and the project at `root` lack for them."""
    with torch.device("meta"):
        codec = codecs.build(config.networks.codec, config.audio)
    # Settings of published weights may name a few keys only; the others are then those of the weights.
    text_width = config.networks.clap.architecture.get("text_width", ClapArchitecture.text_width)
    transformer = budget.skeleton(config.model, codec.tables(), text_width)
    count, counts = len(config.model.transformers), budget.parameters(transformer)
    training, sampling = training_cost(config, codec, transformer), sampling_cost(config, codec, transformer)
    checks = [
        *(check for name, network in networks(config).items() for check in weights(name, network, root)),
        *captioner(config, root),
        *sources(config, root),
        accelerator(training, sampling),
        disk(config, codec, transformer, root),
        ffmpeg(),
        *(server(name, variable) for name, variable in SERVERS.items()),
    ]
    return Diagnosis(config.scale, count, counts, count * counts["total"], training, sampling, checks)


def training_cost(config: Config, codec: Codec, transformer: ResidualTransformer) -> dict[str, Any]:
    """Bytes of one transformer in stage 1, operations of a step, and of all steps of all transformers."""
    stage1, settings = config.train.stage1, config.train.stage1.training
    frames = _frames(config.filter.score.crop_seconds, codec)
    shape = {"batch": settings.batch_size, "frames": frames, "text_length": TEXT_LENGTH}
    part = shape | {"batch": settings.batch_size // stage1.accumulate}
    memory = budget.training_memory(transformer, **part, precision=stage1.precision, averaged=stage1.ema is not None)
    # The last one: it adds up the most embeddings.
    last = budget.skeleton(config.model, codec.tables(), transformer.text_width, len(config.model.transformers) - 1)
    flops = budget.training_flops(last, **shape)
    return {
        **shape,
        "steps": settings.steps,
        "precision": stage1.precision,
        "accumulate": stage1.accumulate,
        "memory": memory,
        "flops_per_step": flops,
        "flops": flops["total"] * settings.steps * len(config.model.transformers),
    }


def sampling_cost(config: Config, codec: Codec, transformer: ResidualTransformer) -> dict[str, Any]:
    """Bytes of all transformers while a batch of the stage `sample` is made."""
    settings = config.evaluate.sample
    twins = 1 if settings.sampling.guidance in (None, 1.0) else 2
    frames = _frames(config.audio.segment_seconds, codec)
    shape = {"batch": settings.batch_size * twins, "frames": frames, "text_length": TEXT_LENGTH}
    return {**shape, "memory": budget.sampling_memory(transformer, **shape)}


def networks(config: Config) -> dict[str, Network]:
    """Every frozen neighbour by its key in the settings."""
    n = config.networks
    named = {"codec": n.codec, "clap": n.clap, "imagebind": n.imagebind}
    return named | {"judge.panns": n.judge.panns, "judge.vggish": n.judge.vggish}


def captioner(config: Config, root: Path) -> Iterator[Check]:
    """Whether the networks that describe and reword are here; those behind an address are not asked."""
    caption, autocap = config.filter.caption, config.networks.autocap
    if autocap is not None:
        named = {"weights": autocap.weights}
        if autocap.weights is None or not (root / autocap.weights / "config.json").is_file():  # ours have a CLAP inside
            named |= {"clap": autocap.clap}
        named |= {"bart": autocap.bart} if autocap.weights is None else {}
        for name, given in named.items():
            if given is not None or name == "weights":
                backend = "autocap" if name == "weights" else "transformers"
                network = Network(backend, given, {}, None if given else autocap.finetuning)
                yield from weights(f"autocap {name}", network, root, f"networks.autocap.{name}")
    used = {"describe": caption.describe if caption.captioner == "qwen2-audio" else None, "rewrite": caption.rewrite}
    for name, model in used.items():
        if model is not None and model.endpoint is None:
            network = Network("transformers", model.model, {}, None)
            yield from weights(name, network, root, f"filter.caption.{name}.model")


def weights(name: str, network: Network, root: Path, key: str = "") -> Iterator[Check]:
    """Whether the weights that a setting (`networks.<name>.weights`) names are here, its labels, and its package."""
    key, given = key or f"networks.{name}.weights", network.weights
    what = FILES.get(network.backend, "a network that this project saved")
    if given is None:
        yield Check(name, "ok", "trained in the pipeline")
    elif (root / given).exists():
        yield Check(name, "ok", given)
    elif HUB_NAME.fullmatch(given) and not Path(given).suffix and not given.startswith("weights/"):
        if _in_hub_cache(given):
            yield Check(name, "ok", f"{given}, in the hub's cache")
        else:
            remedy = f"run `HF_HUB_OFFLINE=0 hf download {given}` where there is a network, or set {key} to a copy"
            yield Check(name, "missing", f"{given} is not in the hub's cache", remedy)
    else:
        yield Check(name, "missing", f"{given} is not there", f"put {what} there, or change {key}")
    labels = network.architecture.get("labels_file")
    if labels and not (root / labels).exists():
        remedy = "put AudioSet's class_labels_indices.csv there, or leave labels_file out: labels are numbered then"
        yield Check(f"{name} labels", "missing", f"{labels} is not there", remedy)
    package = PACKAGES.get(network.backend)
    if package and importlib.util.find_spec(package) is None:
        remedy = "run `make setup`, which installs requirements/audio.in and nodeps.txt"
        yield Check(f"{name} package", "missing", f"{package} is not installed", remedy)


def _in_hub_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in HUB_WEIGHTS)


def sources(config: Config, root: Path) -> Iterator[Check]:
    """Whether the folders of sounds are here, and what public sources need."""
    from siren.collect.fetch import videos
    from siren.collect.sources import VIDEOS, freesound

    for source in config.collect.fetch.sources:
        name, path = f"source {source.kind}", source.options.get("path") or source.options.get("index", "http:")
        if not str(path).startswith("http") and not (root / path).expanduser().is_dir():
            remedy = "put what it needs there, or take the source out of collect.fetch.sources"
            yield Check(f"source {Path(path).name}", "missing", f"no folder {path}", remedy)
        if source.kind in VIDEOS:
            for program, remedy in videos.REMEDIES.items():
                if not shutil.which(program):
                    yield Check(name, "missing", f"{program} is not on the PATH", f"install it with {remedy}")
        if source.kind == "freesound" and not os.environ.get(freesound.KEY):
            remedy = "ask freesound.org for a key, or take the source out of collect.fetch.sources"
            yield Check(name, "missing", f"{freesound.KEY} is not set", remedy)


def accelerator(training: dict[str, Any], sampling: dict[str, Any]) -> Check:
    """Whether the memory here is enough, and the arithmetic a matter of less than a day."""
    needs = max(training["memory"]["total"], sampling["memory"]["total"])
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found = f"{gpu.name}, {size(gpu.total_memory)}; {size(needs)} are needed"
        if gpu.total_memory >= needs:
            return Check("GPU", "ok", found)
        return Check("GPU", "missing", found, "lower train.stage1.training.batch_size and evaluate.sample.batch_size")
    memory, cores = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), os.cpu_count() or 1
    days = training["flops"] / (cores * CPU_FLOPS) / DAY
    found = f"none; {cores} CPU cores would train stage 1 for about {_days(days)}, with {size(memory)} of memory"
    if days <= 1 and memory >= needs:
        return Check("GPU", "ok", found)
    return Check("GPU", "missing", found, f"use a machine with a GPU of at least {size(needs)}")


def disk(config: Config, codec: Codec, transformer: ResidualTransformer, root: Path) -> Check:
    """Whether there is room for the models, the checkpoints of one training, and a corpus whose size is known."""
    one, stage1 = budget.parameters(transformer)["total"] * budget.FLOAT32, config.train.stage1
    checkpoint = one * (3 if stage1.ema is None else 4)  # weights and two moments; another is there while it is written
    needs = one * (len(config.model.transformers) + 1) + checkpoint * (stage1.keep_checkpoints + 1)
    what = "models and checkpoints"
    if pairs := config.filter.select.max_pairs:
        frames = _frames(config.audio.segment_seconds, codec)
        tokens = 2 * frames * codec.num_codebooks + 2 * TEXT_LENGTH * transformer.text_width  # uint16, float16
        needs, what = needs + pairs * (2 * config.audio.segment_samples + tokens), f"{what}, {pairs:,} pairs"
    free = shutil.disk_usage(root).free
    found = f"{size(free)} free; at least {size(needs)} are needed ({what})"
    if free >= needs:
        return Check("disk", "ok", found)
    return Check("disk", "missing", found, "make room, or keep data/, models/ and .siren/ on a larger disk by links")


def ffmpeg() -> Check:
    """Whether sound can be taken out of video files."""
    path = shutil.which("ffmpeg")
    remedy = None if path else "install ffmpeg by the system's package manager, if a source has video files"
    return Check("ffmpeg", "ok" if path else "optional", path or "not on PATH", remedy)


def server(name: str, variable: str, timeout: float = 2.0) -> Check:
    """Whether the server that an environment variable names takes a connection."""
    address = os.environ.get(variable)
    if not address:
        return Check(name, "ok", f"{variable} is not set: no server, local files")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return Check(name, "ok", f"{variable} names no server")
    place = f"{parts.hostname}:{parts.port or {'http': 80, 'https': 443}[parts.scheme]}"
    try:
        socket.create_connection((parts.hostname, int(place.rpartition(":")[2])), timeout).close()
    except OSError as error:
        remedy = f"start it, or unset {variable} to work without"
        return Check(name, "missing", f"no answer from {place} ({error})", remedy)
    return Check(name, "ok", f"{place} answers")


def text(d: Diagnosis) -> str:
    """The diagnosis for people."""
    t, s, memory = d.training, d.sampling, d.training["memory"]
    parameters = [(name, f"{count:,}", f"{count * d.transformers:,}") for name, count in d.parameters.items()]
    lines = [
        f"Scale {d.scale}: {d.transformers} transformers",
        "",
        *_table([("parameters", "one", f"all {d.transformers}"), *parameters]),
        "",
        f"Training one in {t['precision']}, {t['batch'] // t['accumulate']} crops of {t['frames']} frames at once:",
        *_table([(name, size(count)) for name, count in memory.items()]),
        f"  {t['flops_per_step']['total'] / 1e12:.3g} TFLOP a step ({t['flops_per_step']['forward'] / 1e12:.3g} "
        f"forward); {t['flops'] / 1e18:.3g} EFLOP for {t['steps']:,} steps of all",
        "",
        f"Sampling with all in fp32, {s['batch']} at once, {s['frames']} frames:",
        *_table([(name, size(count)) for name, count in s["memory"].items()]),
        "",
        "This machine:",
    ]
    marks = {"ok": "ok", "missing": "MISSING", "optional": "optional"}
    width = max(len(check.name) for check in d.checks)
    for check in d.checks:
        lines.append(f"  {marks[check.status]:8}  {check.name:{width}}  {check.found}")
        if check.remedy:
            lines.append(f"  {'':8}  {'':{width}}  → {check.remedy}")
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes with a unit of a thousand: 272_697_344 → 273 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _days(days: float) -> str:
    if days > 730:
        return f"{days / 365:,.0f} years"
    return f"{days:,.0f} days" if days >= 2 else f"{24 * days:.2g} hours"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    right = ((name, (cell.rjust(w) for cell, w in zip(cells, others, strict=True))) for name, *cells in rows)
    return ["  ".join(["", name.ljust(first), *cells]) for name, cells in right]


def _frames(seconds: float, codec: Codec) -> int:
    return -(-round(seconds * codec.sample_rate) // codec.hop)
