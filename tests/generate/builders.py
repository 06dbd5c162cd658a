"""Random models that are small enough to be sampled within a test, in memory and on the disk."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from siren.config import Network, Sampling
from siren.generate.bundle import Bundle, write_bundle
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer
from siren.networks import clap as claps
from siren.networks import codec as codecs
from tests.tracking import builders

SAMPLING = Sampling(temperature=0.9, top_k=8, top_p=None, guidance=2.0)


def bundle(seconds: float = 0.04, **codec: Any) -> Bundle:
    """Trained on clips of `seconds`, as it were; with frames of 2 ms unless `codec` has another architecture."""
    settings = builders.settings()
    config = dataclasses.replace(settings.model, init_std=0.3)  # distributions that depend on what came before
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spectral = codecs.build(
            Network("spectral", "unused", builders.CODEC | builders.CODES | codec, None), settings.audio
        )
        clap = claps.build(Network("transformers", "unused", builders.CLAP, None), ["a dog barks", "rain falls"], 16000)
        parts = [ResidualTransformer(config, spectral.tables(), clap.text_width, k) for k in config.transformers]
    for network in (spectral, clap, *parts):
        network.eval().requires_grad_(False)
    return Bundle(Siren(parts), spectral, clap, SAMPLING, seconds, "cpu")


def folder(root: Path, sampling: Sampling = SAMPLING) -> Path:
    """Such a model on the disk, with clips of 0.1 s."""
    settings, models = builders.settings(), root / "models"
    builders.write_models(root, settings)
    parts = [models / "aligned" / "0", models / "stage1" / "1"]
    write_bundle(root / "bundle", parts, True, models / "codec", models / "clap", sampling, 0.1)
    return root / "bundle"
