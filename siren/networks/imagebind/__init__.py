"""The reward of the alignment: a second text-audio encoder that shares nothing with CLAP, which conditions the model.

`imagebind` is the paper's (non-commercial licence); `clap` is the same protocol on a CLAP of its own, trained from
another seed, for who needs a licence that allows everything.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from siren.config import Network
from siren.networks import clap as clap_network
from siren.networks import store
from siren.networks.clap.published import load_tensors
from siren.networks.imagebind.architecture import HUGE, architecture
from siren.networks.imagebind.model import LICENCE, ImageBind, load_weights
from siren.networks.text import Tokenizer, train

KIND = "imagebind"

__all__ = ["KIND", "LICENCE", "REWARDS", "ImageBind", "Reward", "build", "load", "load_published", "save"]


class Reward(Protocol):
    """Captions and waveforms on one sphere; the reward of a pair is the product of the two."""

    sample_rate: int
    embed_dim: int

    def embed_text(self, captions: list[str]) -> torch.Tensor: ...

    def embed_audio(self, wav: torch.Tensor) -> torch.Tensor: ...


def build(network: Network, captions: list[str], sample_rate: int) -> nn.Module:
    """An untrained reward for waveforms at `sample_rate`, its tokeniser trained on `captions`.

    Its random start is torch's generator's. Raises ConfigError for an unknown key or an impossible size.
    """
    if network.backend not in REWARDS:
        raise ValueError(f"unknown reward {network.backend!r}; there are {', '.join(REWARDS)}")
    return REWARDS[network.backend](network, captions, sample_rate)


def _build_imagebind(network: Network, captions: list[str], sample_rate: int) -> nn.Module:
    arch = architecture(network.architecture)
    tokenizer = train(captions, arch.vocab_size) if arch.tokens == "corpus" else None
    if tokenizer is not None:
        arch = dataclasses.replace(arch, vocab_size=tokenizer.vocab_size)
    return ImageBind(arch, tokenizer, sample_rate)


def _build_clap(network: Network, captions: list[str], sample_rate: int) -> nn.Module:
    return clap_network.build(dataclasses.replace(network, backend="transformers"), captions, sample_rate)


REWARDS: dict[str, Callable[[Network, list[str], int], nn.Module]] = {
    "imagebind": _build_imagebind,
    "clap": _build_clap,
}


def save(folder: str | Path, reward: nn.Module, extra: dict[str, Any] | None = None) -> None:
    """Write weights, sidecar and tokeniser. The licence goes into the sidecar."""
    if isinstance(reward, clap_network.Clap):
        return clap_network.save(folder, reward, extra)
    assert isinstance(reward, ImageBind)
    config = {"sample_rate": reward.sample_rate, "architecture": dataclasses.asdict(reward.arch)}
    store.save(folder, reward.model, KIND, config, {**(extra or {}), "licence": LICENCE})
    if reward.tokenizer is not None:
        reward.tokenizer.save(folder)
    return None


def load(folder: str | Path, device: str = "cpu") -> Any:
    """A saved reward (`Reward`), frozen and in evaluation mode: an ImageBind or a CLAP, as its sidecar says."""
    if store.read_sidecar(folder)["kind"] == clap_network.KIND:
        return clap_network.load(folder, device)
    config, state = store.load_state(folder, KIND)
    arch = architecture(config["architecture"], f"{folder}: architecture")
    tokenizer = Tokenizer.load(folder) if arch.tokens == "corpus" else None
    reward = ImageBind(arch, tokenizer, config["sample_rate"])
    load_weights(reward.model, state)
    return reward.requires_grad_(False).eval().to(device)


def load_published(path: str | Path, sample_rate: int) -> ImageBind:
    """imagebind_huge from a file (imagebind_huge.pth or a safetensors copy), audio and text only.

    Not run here on the published weights (4.8 GB behind a network); the same code is tested on a small file.
    """
    reward = ImageBind(HUGE, None, sample_rate)
    load_weights(reward.model, load_tensors(path))
    return reward.requires_grad_(False).eval()
