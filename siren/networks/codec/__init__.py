"""Codecs: sound to residual codes and back. Choose one by `networks.codec.backend`, a key of `CODECS`."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from siren.config import Audio, ConfigError, Network, parse
from siren.model.codebooks import CodecTables
from siren.networks import store
from siren.networks.codec.base import KIND, Codec, CodecOutput
from siren.networks.codec.dac import DacArchitecture, DacCodec, converted, from_hub, from_pth
from siren.networks.codec.spectral import SpectralArchitecture, SpectralCodec

__all__ = [
    "CODECS",
    "Codec",
    "CodecOutput",
    "CodecTables",
    "build",
    "extra",
    "load",
    "load_weights",
    "save",
    "untrained",
]

ARCHITECTURE = "networks.codec.architecture"
LICENCES = {"descript/*": "MIT", "weights_*khz*.pth": "MIT"}  # of Descript's weights: hub, and files of their releases


def spectral(architecture: dict[str, Any], sample_rate: int) -> Codec:
    """The demo's codec, see `siren.networks.codec.spectral`."""
    return SpectralCodec(parse(SpectralArchitecture, architecture, ARCHITECTURE), sample_rate)


def transformers(architecture: dict[str, Any], sample_rate: int) -> Codec:
    """DAC through transformers, see `siren.networks.codec.dac`."""
    return DacCodec("transformers", parse(DacArchitecture, architecture, ARCHITECTURE), sample_rate)


def descript(architecture: dict[str, Any], sample_rate: int) -> Codec:
    """DAC through descript-audio-codec, see `siren.networks.codec.dac`."""
    return DacCodec("descript", parse(DacArchitecture, architecture, ARCHITECTURE), sample_rate)


CODECS: dict[str, Callable[[dict[str, Any], int], Codec]] = {
    "spectral": spectral,
    "transformers": transformers,
    "descript": descript,
}


def build(network: Network, audio: Audio) -> Codec:
    """A codec with random weights (torch's global generator). Raises ConfigError for an unknown backend or key."""
    _require_backend(network.backend)
    return CODECS[network.backend](network.architecture, audio.sample_rate)


def save(folder: str | Path, codec: Codec, extra: dict[str, Any] | None = None) -> None:
    """Write a codec so that `load` finds everything; `extra` says how it was made and how good it is."""
    store.save(folder, codec, KIND, codec.settings(), extra)


def load(folder: str | Path, device: str | torch.device = "cpu") -> Codec:
    """A saved codec, frozen and in evaluation mode. Raises ValueError for anything but a whole, untouched one."""
    config, state = store.load_state(folder, KIND)
    codec = CODECS[config["backend"]](config["architecture"], config["sample_rate"])
    try:
        codec.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its config: {error}") from None
    return codec.eval().requires_grad_(False).to(device)


def load_weights(network: Network, audio: Audio) -> Codec:
    """The codec that `network.weights` names: a folder of ours, a hub name, a folder in the hub's format or a `.pth`.

    Raises ConfigError where it is not of the backend, the sample rate or the architecture that the settings give.
    """
    _require_backend(network.backend)
    assert network.weights is not None
    path = Path(network.weights)
    if store.is_ours(path, KIND):
        codec = load(path)
        if isinstance(codec, DacCodec) and network.backend != codec.backend and network.backend != "spectral":
            codec = converted(codec, network.backend)
    elif network.backend == "spectral":
        raise ConfigError(
            f"networks.codec.weights is {network.weights!r}, where no saved codec lies; make one with `make networks`, "
            "or set it to null to train one here"
        )
    else:
        codec = (from_pth if path.suffix == ".pth" else from_hub)(network.weights, network.backend)
    _require_same(codec.settings(), network, audio)
    return codec.eval().requires_grad_(False)


def untrained(codec: Codec, seed: int) -> Codec:
    """A codec like this one with random weights: the control that shows what training did."""
    settings = codec.settings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CODECS[settings["backend"]](settings["architecture"], settings["sample_rate"]).eval()


def extra(weights: str) -> dict[str, Any]:
    """What the sidecar of saved weights tells beyond their config; where they are from, for published ones."""
    ours = store.is_ours(weights, KIND)
    return store.read_sidecar(weights)["extra"] if ours else store.origin(weights, LICENCES)


def _require_backend(name: str) -> None:
    if name not in CODECS:
        near = difflib.get_close_matches(name, CODECS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(CODECS)}"
        raise ConfigError(f"networks.codec.backend is {name!r}; {hint}")


def _require_same(saved: dict[str, Any], network: Network, audio: Audio) -> None:
    """What was loaded must be what the settings say; an empty architecture accepts any."""
    asked = {"backend": network.backend, "sample_rate": audio.sample_rate}
    found = {key: saved[key] for key in asked}
    if network.architecture:
        asked |= network.architecture
        found |= {key: saved["architecture"].get(key) for key in network.architecture}
    wrong = [f"{key} {found[key]!r} (settings: {asked[key]!r})" for key in asked if found[key] != asked[key]]
    if wrong:
        raise ConfigError(
            f"the codec in {network.weights!r} has {', '.join(wrong)}; correct the settings, or set "
            "networks.codec.weights to null to train one with them"
        )
