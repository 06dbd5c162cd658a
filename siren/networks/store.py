"""How a frozen network lies in a folder: `model.safetensors` and a `config.json` that says what it is.

The sidecar holds the kind (which network this is), its config (enough to build it), the SHA-256 of the weights, and
`extra` (recipe, quality, licence: anything a reader should know). Nothing is unpickled, and weights that are not the
ones the sidecar speaks of are refused. The same module gives the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from siren.atomic import replacing, write_text
from siren.hashing import file_sha256

WEIGHTS = "model.safetensors"
SIDECAR = "config.json"
WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def save(
    folder: str | Path, module: nn.Module, kind: str, config: dict[str, Any], extra: dict[str, Any] | None = None
) -> None:
    """Write `module` and its sidecar into `folder`, each in one step, the sidecar last."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    with replacing(folder / WEIGHTS) as weights:
        save_file(tensors, weights)
        sidecar = {"kind": kind, "config": config, "sha256": file_sha256(weights), "extra": extra or {}}
    write_text(folder / SIDECAR, json.dumps(sidecar, indent=2) + "\n")


def load_state(folder: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the weights of a network of this `kind`, on the CPU.

    Raises ValueError where the folder is incomplete, of another kind, or its weights are not the recorded ones.
    """
    folder = Path(folder)
    sidecar = read_sidecar(folder)
    if sidecar["kind"] != kind:
        raise ValueError(f"{folder} holds a network of kind {sidecar['kind']!r}; {kind!r} was asked for")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{folder} has a {SIDECAR} but no {WEIGHTS}; copy both, or train the network here")
    if file_sha256(weights) != sidecar["sha256"]:
        raise ValueError(
            f"{weights} is not the file that {SIDECAR} describes (its SHA-256 differs): it is damaged or was replaced; "
            "restore it, or save the network again"
        )
    return sidecar["config"], load_file(weights)


def read_sidecar(folder: str | Path) -> dict[str, Any]:
    """The sidecar {kind, config, sha256, extra} of a saved network. Raises ValueError where there is none."""
    path = Path(folder) / SIDECAR
    if not path.is_file():
        raise ValueError(f"no saved network in {folder} ({SIDECAR} is missing)")
    try:
        sidecar = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    missing = {"kind", "config", "sha256", "extra"} - set(sidecar if isinstance(sidecar, dict) else ())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; it was not written by siren")
    return sidecar


def is_ours(folder: str | Path, kind: str) -> bool:
    """Whether `folder` holds a network of this `kind` in our format; the hub's has a config.json too, another one."""
    try:
        return bool(read_sidecar(folder)["kind"] == kind)
    except ValueError:
        return False


def origin(weights: str | Path, licences: Mapping[str, str]) -> dict[str, str]:
    """Where published weights are from, for the sidecar: their name, their licence, and of a file the SHA-256.

    `licences`: by pattern of a file's name or of OWNER/NAME on the hub, the licence under which those very weights were
    published. It is "unknown" of any other: that code or weights of the same family are free says nothing about them.
    """
    path = Path(weights)
    known = path.name if path.is_file() else "/".join(path.parts[-2:])  # a folder may be a copy of the hub's
    licence = next((licence for pattern, licence in licences.items() if fnmatchcase(known, pattern)), "unknown")
    name = {"weights": path.name if path.is_file() else str(weights), "licence": licence}
    return name | ({"weights_sha256": file_sha256(path)} if path.is_file() else {})


def fingerprint(tensors: Mapping[str, Tensor] | Iterable[Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes; equal exactly where all of them are.

    A mapping is read in the order of its names, anything else in its own order (its positions are the names).
    """
    if isinstance(tensors, Mapping):
        items = sorted(tensors.items())
    else:
        items = [(str(i), tensor) for i, tensor in enumerate(tensors)]
    digest = hashlib.sha256()
    for name, tensor in items:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def published_name(weights: str) -> str:
    """What figures call a network after its published weights: a hub name as it is, with its owner; of a file the name
    without the ending of its format. Nothing else is cut off, because versions such as `esc_89.98` have dots."""
    path = Path(weights)
    return path.stem if path.suffix in WEIGHT_SUFFIXES else weights
