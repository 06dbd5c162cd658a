"""CUDA-linked torchaudio and torchvision import beside a CPU torch; each claim is tried in a fresh process."""

import importlib.util
import subprocess
import sys

import pytest
import torch

cpu_only = pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a CUDA build: the finder stands aside")


def run(code: str) -> str:
    """Standard output of `code` in a fresh interpreter; its error is the test's failure."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def test_importing_siren_imports_neither_torch_nor_the_two():
    print_loaded = "import siren, sys; print([m for m in ('torch', 'torchaudio', 'torchvision') if m in sys.modules])"
    assert run(print_loaded).strip() == "[]"


def test_the_finder_is_installed_once():
    code = "import siren, sys; from siren import compat; compat.install(); compat.install()\n"
    code += "print(sum(isinstance(f, compat.CpuFinder) for f in sys.meta_path))"
    assert run(code).strip() == "1"


@needs("torchaudio", "torchvision", "transformers")
def test_torchaudio_torchvision_and_transformers_import_and_work():
    code = """
import siren, torch, torchaudio, torchvision
from transformers import DacModel
from torchvision.transforms.functional import resize
print(torchaudio.functional.melscale_fbanks(201, 0.0, 8000.0, 40, 16000).shape[1])
print(tuple(resize(torch.zeros(3, 8, 8), [4, 4]).shape))
"""
    assert run(code).split("\n")[:2] == ["40", "(3, 4, 4)"]


@needs("dac")
def test_the_package_of_the_original_codec_imports():
    assert run("import siren; import dac; print(dac.DAC.__name__)").strip() == "DAC"


@cpu_only
@needs("torchvision")
def test_a_compiled_operator_that_is_missing_fails_loudly():
    from siren.compat import unloadable

    folder = importlib.util.find_spec("torchvision").submodule_search_locations[0]
    if not unloadable(folder, "_C*"):
        pytest.skip("torchvision's library loads here")
    code = """
import siren, torch, torchvision
try:
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except (RuntimeError, NotImplementedError):
    print("refused")
"""
    assert run(code).strip() == "refused"


def test_a_folder_without_the_library_needs_nothing(tmp_path):
    from siren.compat import unloadable

    assert unloadable(str(tmp_path), "_C*") is False


@cpu_only
def test_a_library_that_does_not_load_is_noticed(tmp_path):
    from siren.compat import unloadable

    (tmp_path / "_C.so").write_bytes(b"not a library")
    assert unloadable(str(tmp_path), "_C*") is True


def test_beside_a_cuda_torch_the_finder_stands_aside(tmp_path, monkeypatch):
    from siren.compat import unloadable

    (tmp_path / "_C.so").write_bytes(b"not a library")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert unloadable(str(tmp_path), "_C*") is False
