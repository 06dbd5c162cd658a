"""A random model that is small enough to be served within a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from siren.generate.bundle import Bundle
from siren.serve.engine import Engine, Limits
from tests.generate import builders

LIMITS = Limits(rows=3, queue=4, seconds=0.2, prompt_characters=200, body_bytes=2000)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """Clips of 0.04 s: 20 frames of 2 ms. Registered with guidance, so that both lanes are there."""
    return builders.bundle()


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[Engine]:
    """Not started."""
    made = Engine(bundle, LIMITS)
    yield made
    made.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a model on the disk, with clips of 0.1 s."""
    return builders.folder(tmp_path_factory.mktemp("model"))
