"""ImageBind without its video half: its front end against Kaldi's, its embeddings, what lies on disk, its licence."""

import sys

import pytest
import torch

from siren.config import ConfigError, Network
from siren.networks import imagebind, store
from siren.networks.imagebind.architecture import HUGE, Architecture, architecture
from siren.networks.imagebind.fbank import Fbank, windows
from siren.networks.imagebind.model import ImageBind, clip_tokenizer, load_weights_into

CAPTIONS = ["a dog barks", "rain falls while a bell rings", "an engine running then a dog barking", "someone knocks"]
TINY = {"audio_width": 32, "audio_layers": 1, "text_width": 32, "text_layers": 1, "embed_dim": 24, "audio_stride": 16}


def network(architecture: dict | None = None, weights: str | None = None, backend: str = "imagebind") -> Network:
    return Network(backend, weights or "unused", TINY if architecture is None else architecture, None)


def tiny(seed: int = 0, **changes: object) -> ImageBind:
    torch.manual_seed(seed)
    reward = imagebind.build(network({**TINY, **changes}), CAPTIONS, 16000)
    assert isinstance(reward, ImageBind)
    return reward.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def reward() -> ImageBind:
    return tiny()


@pytest.fixture(scope="module")
def wav() -> torch.Tensor:
    return 0.1 * torch.randn(5, 25600, generator=torch.Generator().manual_seed(0))


def test_filter_banks_are_kaldis(wav: torch.Tensor) -> None:
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    clip = wav[:1] + 0.02  # an offset, which both must remove
    theirs = kaldi.fbank(
        clip - clip.mean(),
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_length=25,
        frame_shift=10,
    )
    ours = Fbank(16000, 128, 158)(clip)[0, 0]
    torch.testing.assert_close(ours, (theirs.T + 4.268) / 9.138, atol=1e-4, rtol=0)


def test_filter_banks_are_cut_or_padded_to_the_target(wav: torch.Tensor) -> None:
    whole, padded, cut = (Fbank(16000, 128, frames)(wav) for frames in (158, 204, 100))
    assert padded.shape == (5, 1, 128, 204)
    torch.testing.assert_close(padded[..., :158], whole)
    assert (padded[..., 158:] - 4.268 / 9.138).abs().max() < 1e-6  # zero before the normalisation, as published
    torch.testing.assert_close(cut, whole[..., :100])


def test_a_clip_shorter_than_a_frame_still_has_one(reward: ImageBind) -> None:
    embedding = reward.embed_audio(torch.full((1, 100), 0.1))
    assert torch.isfinite(embedding).all()


def test_embeddings_are_on_the_unit_sphere_and_not_scaled(reward: ImageBind, wav: torch.Tensor) -> None:
    for embedding in (reward.embed_text(CAPTIONS), reward.embed_audio(wav), reward.embed_audio(wav.repeat(1, 4))):
        assert embedding.shape[1] == reward.embed_dim == 24
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(embedding)))


def test_the_rest_of_a_batch_does_not_change_an_embedding(reward: ImageBind, wav: torch.Tensor) -> None:
    alone = torch.cat([reward.embed_audio(one[None]) for one in wav])
    torch.testing.assert_close(reward.embed_audio(wav), alone, atol=1e-5, rtol=0)
    alone = torch.cat([reward.embed_text([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(reward.embed_text(CAPTIONS), alone, atol=1e-5, rtol=0)


def test_what_follows_the_end_token_does_not_count(reward: ImageBind) -> None:
    ids = reward._tokens(CAPTIONS)
    end = ids.argmax(dim=1)
    assert (ids.amax(dim=1) == reward.arch.vocab_size).all()
    noise = ids.clone()
    for row, at in enumerate(end):
        noise[row, at + 1 :] = 7
    one, other = (reward.model({"text": x})["text"] for x in (ids, noise))
    torch.testing.assert_close(one, other)


def test_a_caption_beyond_the_context_still_has_its_end_token(reward: ImageBind) -> None:
    ids = reward._tokens(["a dog barks " * 40])
    assert ids.shape == (1, reward.arch.context_length)
    assert ids[0, -1] == reward.arch.vocab_size


def test_a_long_clip_is_evenly_spread_windows() -> None:
    cut = windows(torch.arange(10.0)[None], length=4, count=3)
    assert cut[0].tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert windows(torch.arange(3.0)[None], length=4, count=3).shape == (1, 1, 3)


def test_only_sound_and_text_are_left_under_the_published_names(reward: ImageBind) -> None:
    names = reward.model.state_dict()
    assert {name.split(".")[1] for name in names} == {"audio", "text"}
    assert "modality_trunks.audio.blocks.0.attn.in_proj_weight" in names
    assert "modality_preprocessors.audio.rgbt_stem.proj.weight" in names
    assert "modality_postprocessors.text.1.log_logit_scale" in names


def test_the_packages_data_module_never_ran(reward: ImageBind) -> None:
    assert not {"imagebind", "imagebind.data", "pytorchvideo"} & set(sys.modules)


def test_clips_vocabulary_comes_with_the_package() -> None:
    ids = clip_tokenizer(77)("a dog barks")
    assert ids.shape == (77,)
    assert ids[0] == 49406
    assert ids.max() == HUGE.vocab_size == ids[ids.argmax()]


def test_with_clips_vocabulary_a_long_caption_still_has_its_end_token() -> None:
    reward = tiny(tokens="clip", vocab_size=HUGE.vocab_size, context_length=8)
    assert reward.tokenizer is None
    ids = reward._tokens(["a dog barks", "a dog barks and barks and barks again"])
    assert (ids == HUGE.vocab_size).sum(dim=1).tolist() == [1, 1]
    assert ids[1, -1] == HUGE.vocab_size
    torch.testing.assert_close(reward.embed_text(["a dog"]).norm(dim=1), torch.ones(1))


def test_weights_of_all_modalities_load_and_the_others_are_left_out(reward: ImageBind) -> None:
    """The published file has six modalities; two are taken."""
    state = {**reward.model.state_dict(), "modality_trunks.vision.blocks.0.norm_1.weight": torch.zeros(3)}
    other = tiny(1)
    load_weights_into(other.model, state)
    assert torch.equal(other.embed_text(CAPTIONS), reward.embed_text(CAPTIONS))
    del state["modality_heads.audio.0.weight"]
    with pytest.raises(ValueError, match=r"1 tensors are missing.*modality_heads\.audio\.0\.weight"):
        load_weights_into(other.model, state)


def test_a_published_file_loads_without_unpickling(
    reward: ImageBind, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """imagebind_huge.pth's way, at a tiny size: torch.load of tensors only, and a safetensors copy."""
    from safetensors.torch import save_file

    small = tiny(tokens="clip", vocab_size=HUGE.vocab_size, context_length=8)
    monkeypatch.setattr(imagebind, "HUGE", small.arch)
    torch.save(small.model.state_dict(), tmp_path / "huge.pth")
    save_file({k: v.contiguous() for k, v in small.model.state_dict().items()}, tmp_path / "huge.safetensors")
    torch.save({"code": print}, tmp_path / "evil.pth")
    for name in ("huge.pth", "huge.safetensors"):
        loaded = imagebind.load_weights(network({}, str(tmp_path / name)), 16000)
        assert torch.equal(loaded.embed_text(CAPTIONS), small.embed_text(CAPTIONS))
    with pytest.raises(ValueError, match="nothing is unpickled"):
        imagebind.load_weights(network({}, str(tmp_path / "evil.pth")), 16000)


def test_saved_and_loaded_it_embeds_the_same(reward: ImageBind, wav: torch.Tensor, tmp_path) -> None:
    imagebind.save(tmp_path, reward, {"recipe": "test"})
    again = imagebind.load(tmp_path)
    assert torch.equal(again.embed_audio(wav), reward.embed_audio(wav))
    assert torch.equal(again.embed_text(CAPTIONS), reward.embed_text(CAPTIONS))
    assert not any(p.requires_grad for p in again.parameters())
    assert "CC BY-NC-SA 4.0" in store.read_sidecar(tmp_path)["extra"]["licence"]


def test_the_same_seed_gives_the_same_bytes(tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        imagebind.save(tmp_path / name, tiny(seed))
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()


def test_damaged_weights_are_refused(reward: ImageBind, tmp_path) -> None:
    imagebind.save(tmp_path, reward)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256"):
        imagebind.load(tmp_path)


def test_a_clap_is_a_reward_without_the_licence(wav: torch.Tensor, tmp_path) -> None:
    torch.manual_seed(0)
    small = {"width": 16, "heads": [2, 4], "text_width": 32, "text_ffn": 64}
    clap = imagebind.build(network(small, backend="clap"), CAPTIONS, 16000).eval()
    imagebind.save(tmp_path, clap)
    again = imagebind.load(tmp_path)
    assert torch.equal(again.embed_audio(wav), clap.embed_audio(wav))
    assert "licence" not in store.read_sidecar(tmp_path)["extra"]
    loaded = imagebind.load_weights(network(small, str(tmp_path), "clap"), 16000)
    assert torch.equal(loaded.embed_text(CAPTIONS), clap.embed_text(CAPTIONS))


def test_settings_load_saved_weights_and_refuse_what_they_are_not(reward: ImageBind, tmp_path) -> None:
    imagebind.save(tmp_path, reward)
    assert imagebind.load_weights(network(weights=str(tmp_path)), 48000).sample_rate == 48000
    with pytest.raises(ConfigError, match=r"architecture\.audio_width is 64, but .* made with 32"):
        imagebind.load_weights(network({"audio_width": 64}, str(tmp_path)), 16000)
    with pytest.raises(ConfigError, match="make networks"):
        imagebind.load_weights(network(weights="weights/nowhere"), 16000)
    with pytest.raises(ConfigError, match="imagebind, clap"):
        imagebind.build(network(backend="imagebin"), CAPTIONS, 16000)


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from siren.networks import packages
    from siren.networks.imagebind import model

    packages.module_of.cache_clear()
    hidden = [name for name in sys.modules if name.startswith("imagebind")]
    for name in hidden:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    try:
        with pytest.raises(ImportError, match="pip install --no-deps imagebind-packaged"):
            model.imagebind_model(Architecture())
    finally:
        packages.module_of.cache_clear()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("audio_widht", 3, "did you mean 'audio_width'"),
        ("audio_heads", 5, "not a multiple of audio_heads"),
        ("target_frames", 8, "does not fit"),
        ("tokens", "clip", "has 49407 tokens"),
        ("tokens", "words", "must be one of"),
    ],
)
def test_impossible_sizes_name_the_remedy(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        architecture({key: value})
