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

from siren.config import ConfigError, Network
from siren.networks import clap as clap_network
from siren.networks import store
from siren.networks.clap.architecture import require_same
from siren.networks.clap.published import load_tensors
from siren.networks.imagebind.architecture import HUGE, architecture
from siren.networks.imagebind.model import LICENCE, ImageBind, load_weights_into
from siren.networks.text import Tokenizer, train

KIND = "imagebind"
WHERE = "networks.imagebind"

__all__ = ["KIND", "LICENCE", "REWARDS", "ImageBind", "Reward", "build", "extra", "load", "load_weights", "save"]


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
    return REWARDS[_known(network.backend)](network, captions, sample_rate)


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
    """Write weights, sidecar and tokeniser. ImageBind's licence goes into the sidecar."""
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
    load_weights_into(reward.model, state)
    return reward.requires_grad_(False).eval().to(device)


def load_weights(network: Network, sample_rate: int) -> Any:
    """The reward that `network.weights` names: a folder of ours, or a file of imagebind_huge (`.pth`, safetensors).

    The published file has not been run here (4.8 GB behind a network); the same code is tested on a small one. For
    the `clap` reward, anything that `siren.networks.clap` loads. Raises ConfigError where it is not what the settings
    say.
    """
    assert network.weights is not None
    where = f"{WHERE}.architecture"
    if _known(network.backend) == "clap":
        return clap_network.load_weights(dataclasses.replace(network, backend="transformers"), sample_rate)
    if store.is_ours(network.weights, KIND):
        reward = load(network.weights)
        reward.sample_rate = sample_rate
    elif Path(network.weights).is_file():
        reward = ImageBind(HUGE, None, sample_rate).requires_grad_(False).eval()
        load_weights_into(reward.model, load_tensors(network.weights))
    else:
        raise ConfigError(
            f"{WHERE}.weights is {network.weights!r}, where no saved network lies; make one with `make networks`, "
            "name the file of imagebind_huge, or set it to null to train one here"
        )
    require_same(network.architecture, reward.arch, network.weights, where)
    return reward


def extra(weights: str) -> dict[str, Any]:
    """What the sidecar of saved weights tells beyond their config; where they are from, for published ones."""
    if any(store.is_ours(weights, kind) for kind in (KIND, clap_network.KIND)):
        return store.read_sidecar(weights)["extra"]
    return store.origin(weights, {"*": LICENCE}) if Path(weights).is_file() else clap_network.extra(weights)


def _known(backend: str) -> str:
    if backend not in REWARDS:
        raise ConfigError(f"{WHERE}.backend is {backend!r}; there are {', '.join(REWARDS)}")
    return backend
