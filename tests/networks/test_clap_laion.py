"""The same weights through laion_clap's own class: the same text states, embeddings, fingerprint and bytes."""

import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from siren import hashing
from siren.networks import clap as claps
from siren.networks.clap import published
from siren.networks.clap.architecture import HTSAT_BASE_48K, HTSAT_TINY_48K
from siren.networks.clap.names import to_laion, to_transformers
from siren.networks.packages import module_of
from tests.networks.test_clap import CAPTIONS, clips, network, tiny


@pytest.fixture(scope="module")
def ours() -> claps.Clap:
    return tiny()


@pytest.fixture(scope="module")
def theirs(ours: claps.Clap) -> claps.Clap:
    pytest.importorskip("torchlibrosa")
    clap = claps.CLAPS["laion"](ours.arch, ours.tokenizer, 16000)
    clap.load_canonical(ours.canonical_state())
    return clap.eval().requires_grad_(False)


def test_both_libraries_give_the_same_embeddings(ours: claps.Clap, theirs: claps.Clap) -> None:
    wav = clips(4)
    torch.testing.assert_close(theirs.embed_audio(wav), ours.embed_audio(wav), atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs.embed_text(CAPTIONS), ours.embed_text(CAPTIONS), atol=1e-5, rtol=0)
    assert ours.embed_audio(wav).std(dim=0).max() > 1e-3  # clips differ, so that equality says something


def test_both_libraries_give_the_same_text_states(ours: claps.Clap, theirs: claps.Clap) -> None:
    states, mask = ours.text_states(CAPTIONS)
    others, same = theirs.text_states(CAPTIONS)
    assert torch.equal(mask, same)
    torch.testing.assert_close(others, states, atol=1e-5, rtol=0)
    assert theirs.text_fingerprint() == ours.text_fingerprint()


def test_names_translate_both_ways_without_loss(ours: claps.Clap, theirs: claps.Clap) -> None:
    state = ours.canonical_state()
    there = to_laion(state, theirs.model.state_dict())
    back = to_transformers(there)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert to_transformers({f"module.{name}": tensor for name, tensor in there.items()}).keys() == state.keys()


def test_saved_weights_are_the_same_bytes_from_either(ours: claps.Clap, theirs: claps.Clap, tmp_path) -> None:
    claps.save(tmp_path / "ours", ours)
    claps.save(tmp_path / "theirs", theirs)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("ours", "theirs")]
    assert weights[0] == weights[1]
    loaded = claps.load(tmp_path / "theirs")
    assert loaded.backend == "laion"
    assert claps.load(tmp_path / "theirs", backend="transformers").backend == "transformers"
    assert claps.load_weights(network(weights=str(tmp_path / "ours"), backend="laion"), 16000).backend == "laion"


def test_the_packages_own_init_never_ran(theirs: claps.Clap) -> None:
    assert "laion_clap" not in sys.modules  # its hook would fetch tokenizers
    assert "laion_clap.hook" not in sys.modules
    assert "clap_module" not in sys.modules


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from siren.networks.packages import module_of

    with pytest.raises(ImportError, match="pip install --no-deps no-such-distribution"):
        module_of("no_such_package_here", "model", "no-such-distribution")


def checkpoint(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A file as laion_clap leaves it: `module.` before every name, and a numpy scalar under numpy 1's path."""
    torch.save({"epoch": 15, "best": np.float64(0.5), "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    old = path.with_suffix(".old")
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(old, "w") as file:
        for name in new.namelist():
            file.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    old.replace(path)
    return path


def test_a_checkpoint_file_loads_at_the_size_that_its_width_tells(
    ours: claps.Clap, theirs: claps.Clap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "PUBLISHED", {ours.arch.width: ours.arch, 7: None})
    state = {k: v.clone() for k, v in theirs.model.state_dict().items()}
    path = checkpoint(tmp_path / "music_speech_audioset_epoch_15_esc_89.98.pt", state)
    ours.tokenizer.save(tmp_path)
    loaded = claps.load_weights(network({}, str(path)), 16000)
    assert torch.equal(loaded.embed_audio(clips(2)), ours.embed_audio(clips(2)))
    told = claps.extra(str(path))
    assert (told["weights"], told["weights_sha256"]) == (path.name, hashing.file_sha256(path))
    assert told["licence"] == "CC0-1.0"
    assert claps.extra("laion/clap-htsat-unfused")["licence"] == "Apache-2.0"
    assert claps.extra("CLAP_weights_2023.pth")["licence"] == "unknown"
    fused = state | {"audio_branch.patch_embed.fusion_model.x": torch.zeros(1)}
    with pytest.raises(ValueError, match="feature fusion"):
        claps.load_weights(network({}, str(checkpoint(tmp_path / "fused.pt", fused))), 16000)
    monkeypatch.setattr(published, "PUBLISHED", {7: None})
    with pytest.raises(ValueError, match=f"width {ours.arch.width}; known are 7"):
        claps.load_weights(network({}, str(path)), 16000)
    with pytest.raises(ValueError, match="not a laion_clap checkpoint"):
        claps.load_weights(network({}, str(checkpoint(tmp_path / "other.pt", {"x": torch.zeros(1)}))), 16000)


@pytest.mark.slow
def test_the_published_sizes_are_the_packages_own(theirs: claps.Clap) -> None:
    htsat = module_of("laion_clap", "clap_module.htsat", "laion-clap")
    for name, arch in (("tiny", HTSAT_TINY_48K), ("base", HTSAT_BASE_48K)):
        rates = {"sample_rate": 48000, "window_size": 1024, "hop_size": 480, "fmin": 50, "fmax": 14000, "mel_bins": 64}
        config = SimpleNamespace(model_name=name, class_num=527, clip_samples=480000, **rates)
        made = htsat.create_htsat_model(config)
        assert made.embed_dim == arch.width
        assert tuple(layer.depth for layer in made.layers) == arch.depths
        assert tuple(layer.blocks[0].num_heads for layer in made.layers) == arch.heads
        assert made.spec_size == arch.spec_size
