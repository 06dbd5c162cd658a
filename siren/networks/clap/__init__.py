"""CLAP: conditions the language model with its text states, scores the corpus with its embeddings."""

import dataclasses
from pathlib import Path
from typing import Any

from siren.config import Network
from siren.networks import store
from siren.networks.clap.architecture import Architecture, architecture
from siren.networks.clap.hf import TransformersClap
from siren.networks.clap.laion import LaionClap
from siren.networks.clap.protocol import Clap
from siren.networks.text import Tokenizer, train

KIND = "clap"
CLAPS: dict[str, type[Clap]] = {"transformers": TransformersClap, "laion": LaionClap}

__all__ = ["CLAPS", "KIND", "Architecture", "Clap", "build", "load", "save"]


def build(network: Network, captions: list[str], sample_rate: int) -> Clap:
    """An untrained CLAP for waveforms at `sample_rate`, its tokeniser trained on `captions`.

    Its random start is torch's generator's. Raises ConfigError for an unknown key or an impossible size.
    """
    arch = architecture(network.architecture)
    tokenizer = train(captions, arch.vocab_size)
    arch = dataclasses.replace(arch, vocab_size=tokenizer.vocab_size)
    return _backend(network.backend)(arch, tokenizer, sample_rate)


def save(folder: str | Path, clap: Clap, extra: dict[str, Any] | None = None) -> None:
    """Write weights, sidecar and tokeniser; the same bytes whichever backend holds the weights."""
    config = {"sample_rate": clap.sample_rate, "architecture": dataclasses.asdict(clap.arch)}
    if not isinstance(clap, TransformersClap):
        other = TransformersClap(clap.arch, clap.tokenizer, clap.sample_rate)
        other.load_canonical(clap.canonical_state())
        clap = other
    store.save(folder, clap.model, KIND, config, extra)
    clap.tokenizer.save(folder)


def load(folder: str | Path, device: str = "cpu", backend: str = "transformers") -> Clap:
    """A saved CLAP, frozen and in evaluation mode. Raises ValueError for damaged or foreign weights."""
    config, state = store.load_state(folder, KIND)
    arch = architecture(config["architecture"], f"{folder}: architecture")
    clap = _backend(backend)(arch, Tokenizer.load(folder), config["sample_rate"])
    clap.load_canonical(state)
    return clap.requires_grad_(False).eval().to(device)


def _backend(name: str) -> type[Clap]:
    if name not in CLAPS:
        raise ValueError(f"unknown CLAP backend {name!r}; there are {', '.join(CLAPS)}")
    return CLAPS[name]
