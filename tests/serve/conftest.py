"""A random model that is small enough to be served within a test."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from siren.config import Network, Sampling
from siren.generate.bundle import Bundle, write_bundle
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer
from siren.networks import clap as claps
from siren.networks import codec as codecs
from siren.serve.engine import Engine, Limits
from tests.tracking import builders

LIMITS = Limits(rows=3, queue=4, seconds=0.2, prompt_characters=200, body_bytes=2000)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """Clips of 0.04 s: 20 frames of 2 ms. Registered with guidance, so that both lanes are there."""
    settings = builders.settings()
    config = dataclasses.replace(settings.model, init_std=0.3)  # distributions that depend on what came before
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = codecs.build(Network("spectral", "unused", builders.CODEC | builders.CODES, None), settings.audio)
        clap = claps.build(Network("transformers", "unused", builders.CLAP, None), ["a dog barks", "rain falls"], 16000)
        parts = [ResidualTransformer(config, codec.tables(), clap.text_width, k) for k in config.transformers]
    sampling = Sampling(temperature=0.9, top_k=8, top_p=None, guidance=2.0)
    return Bundle(Siren(parts).eval(), codec.eval(), clap.eval(), sampling, 0.04, "cpu")


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[Engine]:
    """Not started."""
    made = Engine(bundle, LIMITS)
    yield made
    made.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a model on the disk, with clips of 0.1 s."""
    root, settings = tmp_path_factory.mktemp("model"), builders.settings()
    builders.write_models(root, settings)
    models = root / "models"
    parts = [models / "aligned" / "0", models / "stage1" / "1"]
    sampling = Sampling(temperature=0.9, top_k=8, top_p=None, guidance=2.0)
    write_bundle(root / "bundle", parts, True, models / "codec", models / "clap", sampling, 0.1)
    return root / "bundle"
