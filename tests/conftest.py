"""Shared by all tests: quiet libraries first, shapes checked at run time, small models and tables to build on."""

import siren  # noqa: F401  (sets the environment before anything else is imported)

from jaxtyping import install_import_hook  # isort: skip

install_import_hook(["siren.model", "siren.generate", "siren.align"], "beartype.beartype")

import os  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

os.environ.setdefault("SIREN_EXPORT", "0")  # stages that tests run start no exporter; their records stay local
torch.set_num_threads(1)  # small models: a second thread gains little, and waits long where cores are shared


@pytest.fixture
def shared() -> Path:
    """The folder of real recordings and the reference checkpoint; tests that need it are marked `real`."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return SHARED
