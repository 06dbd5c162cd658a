"""CLAP: conditions the language model with its text states, scores the corpus with its embeddings."""

import dataclasses
from pathlib import Path
from typing import Any

from siren.config import ConfigError, Network, parse
from siren.networks import store
from siren.networks.clap.architecture import Architecture, architecture, require_same
from siren.networks.clap.hf import TransformersClap
from siren.networks.clap.laion import LaionClap
from siren.networks.clap.msclap import MsClap, is_msclap
from siren.networks.clap.protocol import Clap
from siren.networks.clap.published import load_published, load_tensors
from siren.networks.text import Tokenizer, train

KIND = "clap"
LICENCES = {
    "laion/*": "Apache-2.0",  # its models on the hub
    **dict.fromkeys(("630k-*best.pt", "music_audioset_epoch_*.pt", "music_speech_*epoch_*.pt"), "CC0-1.0"),  # its files
}
CLAPS: dict[str, type[Clap]] = {"transformers": TransformersClap, "laion": LaionClap, "msclap": MsClap}

__all__ = ["CLAPS", "KIND", "Architecture", "Clap", "build", "extra", "load", "load_weights", "save"]


def build(network: Network, captions: list[str], sample_rate: int) -> Clap:
    """An untrained CLAP for waveforms at `sample_rate`, its tokeniser trained on `captions`.

    Its random start is torch's generator's. Raises ConfigError for an unknown key or an impossible size.
    """
    arch = architecture(network.architecture)
    tokenizer = train(captions, arch.vocab_size)
    arch = dataclasses.replace(arch, vocab_size=tokenizer.vocab_size)
    return _backend(network.backend)(arch, tokenizer, sample_rate)


def save(folder: str | Path, clap: Clap, extra: dict[str, Any] | None = None) -> None:
    """Write weights, sidecar and tokeniser; the weights are the same bytes whichever backend holds them."""
    config = {
        "backend": clap.backend,
        "sample_rate": clap.sample_rate,
        "architecture": dataclasses.asdict(clap.arch),
    }
    if isinstance(clap, LaionClap):
        other = TransformersClap(clap.arch, clap.tokenizer, clap.sample_rate)
        other.load_canonical(clap.canonical_state())
        clap = other
    store.save(folder, clap.model, KIND, config, extra)
    clap.tokenizer.save(folder)


def load(folder: str | Path, device: str = "cpu", backend: str | None = None) -> Clap:
    """A saved CLAP, frozen and in evaluation mode, run by `backend` or by the one it was saved from.

    Raises ValueError for damaged or foreign weights.
    """
    config, state = store.load_state(folder, KIND)
    made = _backend(backend or config["backend"])
    arch = parse(made.sizes, config["architecture"], f"{folder}: architecture")
    clap = made(arch, Tokenizer.load(folder, made.marks(arch)), config["sample_rate"])
    clap.load_canonical(state)
    return clap.requires_grad_(False).eval().to(device)


def load_weights(network: Network, sample_rate: int) -> Clap:
    """The CLAP that `network.weights` names: a folder of ours, a hub name, a folder in its layout or a checkpoint.

    Raises ConfigError where nothing is there, or where it has not the architecture that the settings give.
    """
    assert network.weights is not None
    if store.is_ours(network.weights, KIND):
        clap = load(network.weights, backend=network.backend)
        clap.sample_rate = sample_rate
    elif network.weights.startswith("weights/") and not Path(network.weights).exists():
        raise ConfigError(
            f"networks.clap.weights is {network.weights!r}, where no saved network lies; make one with "
            "`make networks`, or set it to null to train one here"
        )
    else:
        clap = load_published(network.weights, _backend(network.backend), sample_rate)
    require_same(network.architecture, clap.arch, network.weights, "networks.clap.architecture")
    return clap


def import_file(path: Path) -> Clap:
    """A published checkpoint file of either family, for waveforms at its own rate. Raises ValueError for another."""
    backend = MsClap if is_msclap(load_tensors(path).get("model", {})) else TransformersClap
    clap = load_published(str(path), backend, sample_rate=1)
    clap.sample_rate = clap.arch.sample_rate
    return clap


def extra(weights: str) -> dict[str, Any]:
    """What the sidecar of saved weights tells beyond their config; where they are from, for published ones."""
    ours = store.is_ours(weights, KIND)
    return store.read_sidecar(weights)["extra"] if ours else store.origin(weights, LICENCES)


def _backend(name: str) -> type[Clap]:
    if name not in CLAPS:
        raise ConfigError(f"networks.clap.backend is {name!r}; there are {', '.join(CLAPS)}")
    return CLAPS[name]
