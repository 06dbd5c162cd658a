"""The evaluating networks: PANNs Cnn14 (FD, KL, IS, event accuracy) and VGGish (FAD).

Three ways to get one: `build` makes an untrained one, `load` reads a folder that this project saved, and `published`
reads the original projects' weight files. They share no weights with CLAP or with the reward network.
A judge has: kind, name, labels, sample_rate, forward(wav [B, S]) and logits(wav [B, S]) → [B, C].
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siren import config as settings
from siren.networks import store
from siren.networks.judge import cnn14, vggish
from siren.networks.judge.cnn14 import Cnn14, Cnn14Config, Cnn14Output
from siren.networks.judge.vggish import Vggish, VggishConfig

__all__ = [
    "JUDGES",
    "ROLES",
    "SAMPLE_RATE",
    "Cnn14",
    "Cnn14Output",
    "Judge",
    "Vggish",
    "build",
    "checked",
    "extra",
    "load",
    "obtain",
    "published",
    "save",
]

Judge = Cnn14 | Vggish
ROLES = {"panns": "cnn14", "vggish": "vggish"}  # section of the settings → the network that the evaluation needs there
LICENCES = {"Cnn14*mAP=*.pth": "CC-BY-4.0", "vggish-*.pth": "Apache-2.0"}  # PANNs' (Zenodo 3987831), torchvggish's
SAMPLE_RATE = cnn14.SAMPLE_RATE
assert vggish.SAMPLE_RATE == SAMPLE_RATE


def _cnn14(architecture: dict[str, Any], labels: Sequence[str]) -> Cnn14:
    return Cnn14(settings.parse(Cnn14Config, architecture, "architecture"), labels)


def _vggish(architecture: dict[str, Any], labels: Sequence[str]) -> Vggish:
    return Vggish(settings.parse(VggishConfig, architecture, "architecture"), labels)


JUDGES: dict[str, Callable[[dict[str, Any], Sequence[str]], Judge]] = {"cnn14": _cnn14, "vggish": _vggish}
PUBLISHED: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "cnn14": cnn14.from_published,
    "vggish": vggish.from_published,
}


def build(network: settings.Network, labels: Sequence[str], seed: int) -> Judge:
    """An untrained judge of `network.backend` with one output for each label; its weights follow from `seed`."""
    architecture = {k: v for k, v in network.architecture.items() if k != "labels_file"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _constructor(network.backend)(architecture, labels)


def save(folder: str | Path, judge: Judge, extra: dict[str, Any] | None = None) -> None:
    """Write weights and sidecar, which together are all that `load` needs."""
    architecture = settings.to_dict(judge.config)
    store.save(folder, judge, judge.kind, {"architecture": architecture, "labels": judge.labels}, extra)


def load(folder: str | Path, device: str = "cpu") -> Judge:
    """A judge that `save` wrote, in evaluation mode."""
    kind = store.read_sidecar(folder)["kind"]
    config, state = store.load_state(folder, kind)
    judge = _constructor(kind)(config["architecture"], config["labels"])
    judge.load_state_dict(state)
    return judge.eval().to(device)


def published(network: settings.Network, device: str = "cpu") -> Judge:
    """A judge with the weights of the original project, from the file that `network.weights` names.

    Takes .safetensors, or the original .pth through torch's weights-only reader (tensors and plain containers, no
    code). Cnn14's labels come from `architecture.labels_file`, AudioSet's class_labels_indices.csv, or are numbered.
    """
    assert network.weights is not None
    state = PUBLISHED[_known(network.backend)](_read_state(Path(network.weights)))
    labels: list[str] = []
    if network.backend == "cnn14":
        if "fc_audioset.weight" not in state:
            raise ValueError(f"{network.weights} has no fc_audioset.weight: it is not a PANNs Cnn14")
        labels = _labels(network.architecture.get("labels_file"), count=len(state["fc_audioset.weight"]))
    judge = build(network, labels, seed=0)
    try:
        judge.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{network.weights} does not fit {network.backend} as configured: {error}") from None
    return judge.eval().to(device)


def checked(network: settings.Network, role: str) -> settings.Network:
    """The section `networks.judge.<role>`, if it names the network that the evaluation needs there."""
    settings.require(
        network.backend == ROLES[role],
        f"networks.judge.{role}.backend is {network.backend!r}; the metrics are defined on {ROLES[role]!r}",
    )
    return network


def obtain(network: settings.Network, device: str = "cpu") -> Judge:
    """The judge that `network.weights` names: a folder of this project or a published file."""
    assert network.weights is not None
    path = Path(network.weights)
    if not path.exists():
        raise ValueError(f"no judge weights at {path}; set weights to null to train the judge here")
    if not path.is_dir():
        return published(network, device)
    judge = load(path, device)
    if judge.kind != network.backend:
        raise ValueError(f"{path} holds a {judge.kind}; the settings ask for {network.backend}")
    return judge


def extra(weights: str) -> dict[str, Any]:
    """What the sidecar of saved weights tells beyond their config; for a published file, its origin."""
    return store.read_sidecar(weights)["extra"] if Path(weights).is_dir() else store.origin(weights, LICENCES)


def _known(backend: str) -> str:
    if backend not in JUDGES:
        raise settings.ConfigError(f"unknown judge backend {backend!r}; it must be one of {', '.join(JUDGES)}")
    return backend


def _constructor(backend: str) -> Callable[[dict[str, Any], Sequence[str]], Judge]:
    return JUDGES[_known(backend)]


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("model", state)  # PANNs wraps its state together with the iteration count


def _labels(path: str | None, count: int) -> list[str]:
    if path is None:
        return [f"class {i}" for i in range(count)]
    with Path(path).open(newline="") as file:
        labels = [row["display_name"] for row in csv.DictReader(file)]
    if len(labels) != count:
        raise ValueError(f"{path} names {len(labels)} classes, the weights have {count}")
    return labels
