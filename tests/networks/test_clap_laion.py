"""The same weights through laion_clap's own class: the same text states, embeddings, fingerprint and bytes."""

import sys

import pytest
import torch

from siren.networks import clap as claps
from siren.networks.clap.names import to_laion, to_transformers
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
