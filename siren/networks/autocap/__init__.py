"""AutoCap: describes a clip from its sound and from what is known of it (title, labels)."""

import dataclasses
from pathlib import Path
from typing import Any

from siren.config import AutoCap as Settings
from siren.config import ConfigError, Network, parse, require
from siren.networks import clap as claps
from siren.networks import store
from siren.networks.autocap.architecture import Architecture, architecture
from siren.networks.autocap.model import AutoCap, Metadata
from siren.networks.autocap.published import load_published
from siren.networks.clap.architecture import require_same
from siren.networks.clap.names import check
from siren.networks.text import Tokenizer, train

KIND = "autocap"
CLAP = "clap"  # folder of the frozen CLAP inside a saved network
LICENCE = "non-commercial research (the authors' weights); see their source"

__all__ = ["KIND", "Architecture", "AutoCap", "Metadata", "build", "extra", "load", "load_weights", "save"]


def build(settings: Settings, captions: list[str], sample_rate: int) -> AutoCap:
    """An untrained AutoCap for waveforms at `sample_rate`; its random start is torch's generator's.

    Its tower is a copy of that of the CLAP in the settings. Without a published BART its tokeniser is trained on
    `captions`. Raises ConfigError where the sizes do not fit.
    """
    arch, clap = architecture(settings.architecture), _clap(settings, sample_rate)
    assert clap is not None  # config.AutoCap holds one
    arch = dataclasses.replace(arch, tower=clap.arch)
    tokenizer = train(captions, arch.vocab_size) if settings.bart is None else Tokenizer.published(settings.bart)
    if settings.bart is None:
        arch = dataclasses.replace(arch, vocab_size=tokenizer.vocab_size)
    made = AutoCap(arch, tokenizer, clap if settings.clap_token else None, sample_rate)
    made.ears.tower.load_state_dict(clap.model.audio_model.state_dict())
    if settings.bart is not None:
        _start_from(made, settings.bart)
    return made


def save(folder: str | Path, made: AutoCap, extra: dict[str, Any] | None = None) -> None:
    """Write weights, sidecar, tokeniser, and the frozen CLAP beside them."""
    folder, clap = Path(folder), made.clap
    config = {"sample_rate": made.sample_rate, "architecture": dataclasses.asdict(made.arch), CLAP: clap is not None}
    store.save(folder, made.network, KIND, config, extra)
    made.tokenizer.save(folder)
    if clap is not None:
        (folder / CLAP).mkdir(exist_ok=True)
        claps.save(folder / CLAP, clap)


def load(folder: str | Path, device: str = "cpu") -> AutoCap:
    """A saved AutoCap, frozen and in evaluation mode. Raises ValueError for damaged or foreign weights."""
    config, state = store.load_state(folder, KIND)
    clap = claps.load(Path(folder) / CLAP) if config[CLAP] else None
    arch = parse(Architecture, config["architecture"], f"{folder}: architecture")
    made = AutoCap(arch, Tokenizer.load(folder), clap, config["sample_rate"])
    made.network.load_state_dict(state)
    return made.requires_grad_(False).eval().to(device)


def load_weights(settings: Settings, sample_rate: int) -> AutoCap:
    """The AutoCap that `settings.weights` names: a folder of ours, or the authors' checkpoint file.

    Raises ConfigError where nothing is there or where it has not what the settings say, ValueError for another network.
    """
    assert settings.weights is not None
    if not Path(settings.weights).exists():
        raise ConfigError(
            f"networks.autocap.weights is {settings.weights!r}, where nothing lies; put the authors' checkpoint or a "
            "network of ours there, or set it to null to train one here"
        )
    if (Path(settings.weights) / store.SIDECAR).is_file():
        made = load(settings.weights)
        sizes = {key: value for key, value in settings.architecture.items() if key != "tower"}  # which is its CLAP's
        require_same(sizes, made.arch, settings.weights, "networks.autocap.architecture")
        require(
            settings.clap_token == (made.clap is not None),
            f"networks.autocap.clap_token is {settings.clap_token}, but {settings.weights} was made with "
            f"{made.clap is not None}; train anew or change the key",
        )
        made.sample_rate = sample_rate
        if made.clap is not None:
            made.clap.sample_rate = sample_rate
        return made
    clap = _clap(settings, sample_rate) if settings.clap_token else None
    return load_published(settings.weights, architecture(settings.architecture), clap, sample_rate)


def extra(weights: str) -> dict[str, Any]:
    """What the sidecar of saved weights tells beyond their config; where they are from, for published ones."""
    if (Path(weights) / store.SIDECAR).is_file():
        return dict(store.read_sidecar(weights)["extra"])
    return store.origin(weights, {"*": LICENCE})


def _clap(settings: Settings, sample_rate: int) -> claps.Clap | None:
    if settings.clap is None:
        return None
    lacks = settings.clap.startswith("weights/") and not Path(settings.clap).exists()
    require(not lacks, f"networks.autocap.clap is {settings.clap!r}, where nothing lies; put a CLAP there")
    return claps.load_weights(Network("transformers", settings.clap, {}, None), sample_rate)


def _start_from(made: AutoCap, name: str) -> None:
    """Take a published BART's weights; the published one itself has not been run here. ValueError for another size."""
    from transformers import BartForConditionalGeneration

    state = BartForConditionalGeneration.from_pretrained(name, use_safetensors=True).state_dict()
    check(state, made.writer.bart.state_dict(), f"the weights of {name} (networks.autocap.bart)")
    made.writer.bart.load_state_dict(state)
    made.writer.start_from_language()
