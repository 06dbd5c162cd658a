"""CLAP through transformers: what its embeddings and text states do not depend on, and what lies on disk."""

import json

import numpy as np
import pytest
import torch

from siren.config import ConfigError, Network
from siren.networks import clap as claps
from siren.networks.clap.architecture import HTSAT_TINY_48K, Architecture, architecture
from siren.networks.clap.features import LogMel, windows
from siren.networks.resample import resample

CAPTIONS = ["a dog barks", "rain falls while a bell rings", "an engine running then a dog barking", "someone knocks"]
TINY = {"width": 16, "heads": [2, 4], "text_width": 32, "text_ffn": 64, "embed_dim": 24}


def network(architecture: dict | None = None, weights: str | None = None, backend: str = "transformers") -> Network:
    return Network(backend, weights or "unused", TINY if architecture is None else architecture, None)


def tiny(seed: int = 0) -> claps.Clap:
    torch.manual_seed(seed)
    clap = claps.build(network(), CAPTIONS, 16000)
    for name, parameter in clap.named_parameters():  # nothing may stay at a neutral zero or one
        if parameter.ndim < 2 or "relative_position" in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        else:
            parameter.data.mul_(4)  # so that inputs make a difference
    return clap.eval().requires_grad_(False)


def clips(count: int) -> torch.Tensor:
    """Noises of different loudness with tones of different pitch, 1.6 s each."""
    noise = torch.randn(count, 25600, generator=torch.Generator().manual_seed(0))
    time = torch.arange(25600) / 16000
    tones = torch.stack([torch.sin(2 * torch.pi * 300 * 2**i * time * (1 + i * time / 8)) for i in range(count)])
    return 0.1 * tones + 10.0 ** -torch.arange(1, count + 1)[:, None] * noise


@pytest.fixture(scope="module")
def clap() -> claps.Clap:
    return tiny()


@pytest.fixture(scope="module")
def wav() -> torch.Tensor:
    return clips(5)


def test_embeddings_lie_on_the_unit_sphere(clap: claps.Clap, wav: torch.Tensor) -> None:
    for embedding in (clap.embed_text(CAPTIONS), clap.embed_audio(wav), clap.embed_audio(wav.repeat(1, 3))):
        assert embedding.shape[1] == clap.embed_dim == 24
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(embedding)))


def test_text_states_are_those_of_every_token_and_zero_on_padding(clap: claps.Clap) -> None:
    states, mask = clap.text_states(CAPTIONS)
    assert states.shape == (*mask.shape, clap.text_width)
    assert states[mask].abs().sum(dim=1).min() > 0
    assert states[~mask].abs().max() == 0
    assert not torch.allclose(states[0, 1], states[0, 2])  # not one pooled vector repeated


def test_padding_does_not_change_text_states(clap: claps.Clap) -> None:
    together, mask = clap.text_states([*CAPTIONS, "a very long caption " * 5])
    for row, caption in enumerate(CAPTIONS):
        alone, _ = clap.text_states([caption])
        torch.testing.assert_close(together[row, mask[row]], alone[0], atol=1e-5, rtol=0)


def test_the_rest_of_a_batch_does_not_change_an_embedding(clap: claps.Clap, wav: torch.Tensor) -> None:
    alone = torch.cat([clap.embed_audio(one[None]) for one in wav])
    torch.testing.assert_close(clap.embed_audio(wav), alone, atol=1e-5, rtol=0)
    alone = torch.cat([clap.embed_text([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(clap.embed_text(CAPTIONS), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [25600, 9000])
def test_log_mel_is_that_of_the_published_feature_extractor(samples: int, wav: torch.Tensor) -> None:
    from transformers import ClapFeatureExtractor

    arch = Architecture(mel_bands=32, spec_size=128)
    extractor = ClapFeatureExtractor(
        feature_size=arch.mel_bands,
        sampling_rate=arch.sample_rate,
        hop_length=arch.hop,
        fft_window_size=arch.n_fft,
        frequency_min=arch.fmin,
        frequency_max=arch.fmax,
        truncation="rand_trunc",
        padding="repeatpad",
    )
    clip = wav[:1, :samples]
    theirs = extractor(clip[0].numpy(), max_length=arch.max_samples, sampling_rate=arch.sample_rate)
    ours = LogMel(arch)(windows(clip, arch.max_samples)[:, 0])
    np.testing.assert_allclose(ours[0].numpy(), theirs["input_features"][0], atol=2e-2)  # decibels
    assert np.abs(ours[0].numpy() - theirs["input_features"][0]).mean() < 1e-3


def test_a_long_clip_is_the_mean_of_windows_that_cover_it(clap: claps.Clap, wav: torch.Tensor) -> None:
    long = torch.cat([wav[:1], wav[1:2, :20000]], dim=1)
    cut = windows(long, 25600)
    assert cut.shape == (1, 2, 25600)
    torch.testing.assert_close(cut[0, 1], long[0, -25600:])
    mean = clap.embed_audio(cut[0]).mean(dim=0)
    torch.testing.assert_close(clap.embed_audio(long)[0], mean / mean.norm(), atol=1e-5, rtol=0)


def test_a_short_clip_is_repeated_whole_and_then_padded() -> None:
    cut = windows(torch.arange(1.0, 5.0)[None], 10)
    assert cut[0, 0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 0, 0]


@pytest.mark.parametrize(("source", "target"), [(16000, 48000), (48000, 16000), (44100, 16000)])
def test_resampling_keeps_a_tone(source: int, target: int) -> None:
    # 441 Hz has whole periods in a second at each rate, so the clip is periodic and the result exact
    tone = torch.sin(2 * torch.pi * 441 * torch.arange(source).double() / source)[None]
    expected = torch.sin(2 * torch.pi * 441 * torch.arange(target).double() / target)[None]
    torch.testing.assert_close(resample(tone, source, target), expected, atol=1e-9, rtol=0)


def test_waveforms_at_another_rate_are_resampled_inside(clap: claps.Clap, wav: torch.Tensor) -> None:
    other = tiny()
    other.sample_rate = 48000
    tripled = resample(wav, 16000, 48000)
    torch.testing.assert_close(other.embed_audio(tripled), clap.embed_audio(wav), atol=1e-3, rtol=0)


def test_saved_and_loaded_it_embeds_the_same(clap: claps.Clap, wav: torch.Tensor, tmp_path) -> None:
    claps.save(tmp_path, clap, {"recipe": "test"})
    again = claps.load(tmp_path)
    assert torch.equal(again.embed_audio(wav), clap.embed_audio(wav))
    assert torch.equal(again.text_states(CAPTIONS)[0], clap.text_states(CAPTIONS)[0])
    assert again.text_fingerprint() == clap.text_fingerprint()
    assert not any(p.requires_grad for p in again.parameters())
    assert claps.extra(str(tmp_path)) == {"recipe": "test"}


def test_the_same_seed_gives_the_same_bytes(tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        claps.save(tmp_path / name, tiny(seed))
    files = {p.name for p in (tmp_path / "a").iterdir()}
    assert files == {"model.safetensors", "config.json", "tokenizer.json"}
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()


def test_damaged_weights_are_refused(clap: claps.Clap, tmp_path) -> None:
    claps.save(tmp_path, clap)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256"):
        claps.load(tmp_path)


def test_weights_of_another_size_are_refused_by_name(clap: claps.Clap) -> None:
    state = clap.canonical_state()
    name = "text_model.pooler.dense.weight"
    with pytest.raises(ValueError, match=rf"{name} is \[3, 32\], not \[32, 32\]"):
        clap.load_canonical(state | {name: state[name][:3]})
    with pytest.raises(ValueError, match=r"1 missing .*1 unknown"):
        clap.load_canonical({k: v for k, v in state.items() if k != name} | {"surprise": state[name]})


def test_the_text_fingerprint_sees_the_text_tower_and_the_tokeniser_only(clap: claps.Clap) -> None:
    other = tiny()
    assert other.text_fingerprint() == clap.text_fingerprint()
    other.model.audio_projection.linear1.bias.add_(1)
    assert other.text_fingerprint() == clap.text_fingerprint()
    other.model.text_model.pooler.dense.bias.add_(1)
    assert other.text_fingerprint() != clap.text_fingerprint()


def test_settings_load_saved_weights_and_refuse_another_size(clap: claps.Clap, wav: torch.Tensor, tmp_path) -> None:
    claps.save(tmp_path, clap)
    loaded = claps.load_weights(network(weights=str(tmp_path)), 48000)
    assert loaded.sample_rate == 48000
    with pytest.raises(ConfigError, match=r"networks\.clap\.architecture\.width is 24, but .* made with 16"):
        claps.load_weights(network({"width": 24}, str(tmp_path)), 16000)
    with pytest.raises(ConfigError, match="make networks"):
        claps.load_weights(network(weights="weights/nowhere"), 16000)
    with pytest.raises(ConfigError, match="transformers, laion"):
        claps.build(network(backend="lion"), CAPTIONS, 16000)


def test_weights_in_the_hubs_layout_load(clap: claps.Clap, wav: torch.Tensor, tmp_path) -> None:
    """What a published model is made of, at a tiny size: weights, config, feature extractor, tokeniser."""
    from transformers import ClapFeatureExtractor, PreTrainedTokenizerFast

    arch = clap.arch
    clap.model.save_pretrained(tmp_path)
    ClapFeatureExtractor(
        sampling_rate=16000,
        hop_length=arch.hop,
        max_length_s=arch.max_seconds,
        fft_window_size=arch.n_fft,
        frequency_min=arch.fmin,
        frequency_max=arch.fmax,
        truncation="rand_trunc",
    ).save_pretrained(tmp_path)
    clap.tokenizer.save(tmp_path)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **names)
    tokenizer.save_pretrained(tmp_path)
    loaded = claps.load_weights(network({}, str(tmp_path)), 16000)
    torch.testing.assert_close(loaded.embed_audio(wav), clap.embed_audio(wav), atol=1e-6, rtol=0)
    torch.testing.assert_close(loaded.text_states(CAPTIONS)[0], clap.text_states(CAPTIONS)[0], atol=1e-5, rtol=0)


def test_a_model_with_feature_fusion_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clap", "audio_config": {"enable_fusion": True}}))
    from transformers import ClapConfig

    from siren.networks.clap.published import refuse_fusion

    with pytest.raises(ValueError, match="feature fusion"):
        refuse_fusion(str(tmp_path), ClapConfig.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("widht", 3, "did you mean 'width'"),
        ("hop", 10, "use a larger hop"),
        ("window", 5, "multiple of the window"),
        ("heads", [5, 8], "must divide the stage's width"),
        ("mel_bands", 48, "not a multiple of mel_bands"),
        ("fmax", 9000.0, "above half of sample_rate"),
        ("max_tokens", 200, "add 2"),
    ],
)
def test_impossible_sizes_name_the_remedy(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        architecture({key: value})


def test_the_published_size_is_possible() -> None:
    assert HTSAT_TINY_48K.audio_width == 768
    assert HTSAT_TINY_48K.frames == 1001
    assert HTSAT_TINY_48K.spec_frames == 1024
