"""The authors' stage-1 release as files: read with every rule checked, and written back with the same bytes.

    manifest.json              format_version 1, the config's name, and for each transformer its file and SHA-256
    config.json                see `siren.model.published.PublishedConfig`
    expert_<first>.safetensors one transformer, named by its first codebook: 0, 2, …, 10

Nothing in a release is trusted: its files have to lie in its own folder, hash as the manifest says and hold exactly
the tensors that its config asks for, with one codec's tables in all of them. All of that is known before anything is
written.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from siren.atomic import replacing, write_text
from siren.config import ConfigError, parse, require
from siren.generate.bundle import load_transformer, save_transformer
from siren.hashing import file_sha256
from siren.model.codebooks import CodecTables
from siren.model.published import (
    FROZEN,
    NUM_CODEBOOKS,
    NUM_TRANSFORMERS,
    PublishedConfig,
    check_shapes,
    published_config,
    published_state,
    tables_of,
    transformer_of,
)
from siren.networks import store
from siren.networks.clap import Clap
from siren.networks.codec import Codec
from siren.progress import track

MANIFEST, CONFIG, WEIGHTS = "manifest.json", "config.json", "expert_{}.safetensors"
VERSION = 1
GROUP = NUM_CODEBOOKS // NUM_TRANSFORMERS
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
UNKNOWN = "unknown"  # the text encoder of a release, which does not name it, unless the caller does


@dataclass(frozen=True)
class Expert:
    start_codebook: int
    weights: str
    sha256: str

    def __post_init__(self) -> None:
        require(
            re.fullmatch("[0-9a-fA-F]{64}", self.sha256) is not None,
            f"sha256 of expert {self.start_codebook} is {self.sha256!r}; it has 64 hexadecimal digits",
        )


@dataclass(frozen=True)
class Manifest:
    format_version: int
    config: str
    experts: tuple[Expert, ...]

    def __post_init__(self) -> None:
        found, right = [expert.start_codebook for expert in self.experts], list(range(0, NUM_CODEBOOKS, GROUP))
        for start in found:
            require(start in right, f"start_codebook is {start}; it is one of {', '.join(map(str, right))}")
            require(found.count(start) == 1, f"start_codebook {start} is there {found.count(start)} times")
        missing = [str(start) for start in right if start not in found]
        require(not missing, f"no expert for start_codebook {', '.join(missing)}")


@dataclass(frozen=True)
class Release:
    """A release that has been checked: its settings, its files in the order of the transformers, its codec's tables."""

    folder: Path
    config: PublishedConfig
    files: tuple[Path, ...]
    tables: CodecTables
    dtype: str  # of the weights; ours are float32 always

    def states(self) -> Iterator[dict[str, Tensor]]:
        """The tensors of each transformer under their names; one file at a time, because they are large."""
        for path in self.files:
            yield load_file(path)


def read(folder: str | Path) -> Release:
    """Check a release. Raises ValueError that names the file and the value, for anything that breaks a rule."""
    folder = Path(folder)
    manifest = _manifest(folder)
    path = inside(folder, manifest.config, ".json")
    settings = {key: value for key, value in _json(path).items() if not key.startswith("_")}
    config: PublishedConfig = _parsed(PublishedConfig, settings, path)
    files, dtypes = [], set()
    for expert in sorted(manifest.experts, key=lambda expert: expert.start_codebook):
        path = inside(folder, expert.weights, ".safetensors")
        if (found := file_sha256(path)) != expert.sha256.lower():
            raise ValueError(
                f"{path} has SHA-256 {found[:12]}…, the manifest says {expert.sha256[:12]}…: it is damaged or was "
                "replaced; fetch it again"
            )
        shapes, kinds = _header(path)
        check_shapes(config, shapes, str(path))
        files.append(path)
        dtypes |= kinds
    if len(dtypes) > 1 or not dtypes <= DTYPES.keys():
        raise ValueError(
            f"the weights in {folder} are of {', '.join(sorted(dtypes))}; all have to be of one of {', '.join(DTYPES)}"
        )
    return Release(folder, config, tuple(files), _same_tables(files), DTYPES[dtypes.pop()])


def inside(folder: Path, name: str, suffix: str) -> Path:
    """The file `name` of a release. Raises ValueError for a name or a link that leads out of `folder`."""
    parts = Path(name).parts
    if not name or Path(name).is_absolute() or ".." in parts or "\\" in name or "://" in name:
        raise ValueError(f"{folder / MANIFEST} names {name!r}; only files below its own folder may be named")
    if Path(name).suffix != suffix:
        raise ValueError(f"{folder / MANIFEST} names {name!r}, where a {suffix} file is needed")
    path = folder / name
    real = os.path.realpath(path)
    if not Path(real).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{path} is a link to {real}, out of its folder; copy the file there instead")
    if not path.is_file():
        raise ValueError(f"{folder / MANIFEST} names {name!r}, which is not there; fetch it, too")
    return path


def import_release(
    folder: str | Path, out: str | Path, codec: Codec | None = None, clap: Clap | None = None
) -> list[Path]:
    """A release as transformers of ours: `out`/0 … `out`/5, in order.

    With a codec or a text encoder they are remembered as the ones that the model belongs to, after they were found to
    fit. Without, the codec is known by the fingerprint of the tables in the release, and the text encoder not at all.
    Raises ValueError as `read`, and where the codec is another one or the text states have another width.
    """
    release, out = read(folder), Path(out)
    made_with = {
        "codec": store.fingerprint(vars(release.tables)),
        "text_encoder": UNKNOWN,
        "published": {"format_version": VERSION, "dtype": release.dtype},
    }
    if codec is not None:
        require_codec(release, codec)
        made_with["codec"] = codec.fingerprint()
    if clap is not None:
        if clap.text_width != release.config.prompt_dim:
            raise ValueError(
                f"the model in {release.folder} reads text states of width {release.config.prompt_dim}, this text "
                f"encoder makes them {clap.text_width} wide; name its own (--clap; none leaves this out)"
            )
        made_with["text_encoder"] = clap.text_fingerprint()
    folders = []
    for index, state in enumerate(track(release.states(), "import", len(release.files), unit="transformer")):
        folders.append(out / str(index))
        save_transformer(folders[-1], transformer_of(release.config, state, index), made_with)
    return folders


def require_codec(release: Release, codec: Codec) -> None:
    """Raise ValueError unless the release holds this codec's tables.

    Code rows have to be equal bit by bit (in the release's precision); out-projections nearly, because packages that
    fold their weight normalisation into them round differently in the last place.
    """
    theirs, ours = release.tables, codec.tables()
    dtype: torch.dtype = getattr(torch, release.dtype)
    same = theirs.rows.shape == ours.rows.shape and theirs.weight.shape == ours.weight.shape
    if same:
        near = 4 * torch.finfo(dtype).eps
        rows, *others = (
            (getattr(theirs, name), getattr(ours, name).cpu().to(dtype).float()) for name in ("rows", "weight", "bias")
        )
        same = torch.equal(*rows) and all(torch.allclose(a, b, rtol=near, atol=near) for a, b in others)
    if not same:
        raise ValueError(
            f"the model in {release.folder} was trained with codec {store.fingerprint(vars(theirs))[:12]} "
            f"({_size(theirs)}), this one is {codec.fingerprint()[:12]} ({_size(ours)}); "
            "name its own (--codec; none leaves this out)"
        )


def export_release(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Transformers of ours as a release in `out`, its manifest last; returns the manifest's path.

    An imported model gives the tensors it came with, byte by byte. One transformer at a time is in memory. Raises
    ValueError where the folders are not all the transformers of one model, or where the format cannot hold it.
    """
    out = Path(out)
    sidecars = [store.read_sidecar(folder) for folder in folders]
    found = [sidecar["config"]["index"] for sidecar in sidecars]
    if found != list(range(len(sidecars[0]["config"]["model"]["transformers"]))):
        raise ValueError(f"these are transformers {found}; a release has all of a model, in order")
    for folder, sidecar in zip(folders, sidecars, strict=True):
        same = sidecar["config"] | {"index": 0} == sidecars[0]["config"]
        if not same or sidecar["extra"]["codec"] != sidecars[0]["extra"]["codec"]:
            part = "another codec" if same else "other settings"
            raise ValueError(f"{folder} has {part} than {folders[0]}; they are of two models")
    config = published_config(load_transformer(folders[0]))
    out.mkdir(parents=True, exist_ok=True)
    experts = []
    for folder, sidecar in track(zip(folders, sidecars, strict=True), "export", len(folders), unit="transformer"):
        transformer = load_transformer(folder)
        dtype = getattr(torch, sidecar["extra"].get("published", {}).get("dtype", "float32"))
        state = {k: v.to(dtype).contiguous().clone() for k, v in published_state(transformer.state_dict()).items()}
        name = WEIGHTS.format(transformer.first)
        with replacing(out / name) as path:
            save_file(state, path)
        sha256 = file_sha256(out / name)
        experts.append({"start_codebook": transformer.first, "weights": name, "sha256": sha256})
    manifest = {"format_version": VERSION, "config": CONFIG, "experts": experts}
    for name, content in ((CONFIG, vars(config)), (MANIFEST, manifest)):
        write_text(out / name, json.dumps(content, indent=1) + "\n")
    return out / MANIFEST


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} holds no release: it has no {MANIFEST}")
    content = _json(path)
    if (version := content.get("format_version")) != VERSION:
        raise ValueError(f"{path} has format_version {version!r}; this reader knows version {VERSION}")
    manifest: Manifest = _parsed(Manifest, content, path)
    return manifest


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not an object")
    return content


def _parsed(kind: type, content: dict[str, Any], path: Path) -> Any:
    try:
        return parse(kind, content, "")
    except ConfigError as error:
        raise ValueError(f"{path}: {error}") from None


def _header(path: Path) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Shapes and dtypes of the tensors of a file, which is not read for it."""
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            return shapes, {str(part.get_dtype()) for part in slices.values()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


def _same_tables(files: Sequence[Path]) -> CodecTables:
    """The codec's tables, which have to be the same in every file."""
    first: CodecTables | None = None
    for path in files:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith("codebooks.") and ".projector." not in name]  # noqa: SIM118
            tables = tables_of({name: file.get_tensor(name) for name in names})
        first = first or tables
        for part in FROZEN:
            part = part.removeprefix("codebooks.")
            if not torch.equal(getattr(tables, part), getattr(first, part)):
                raise ValueError(f"{path} holds other codec tables ({part}) than {files[0]}; they are of two models")
    assert first is not None
    return first


def _size(tables: CodecTables) -> str:
    return f"{tables.num_codebooks} codebooks of {tables.codebook_size}"
