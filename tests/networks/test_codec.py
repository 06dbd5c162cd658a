"""The codec protocol, held by every backend; saving, loading and refusing."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from siren.config import Audio, ConfigError, Network
from siren.networks import codec as codecs
from siren.networks import store
from siren.networks.codec import DacCodec, load, load_weights, save

AUDIO = Audio(sample_rate=16000, segment_seconds=1.0)
SPECTRAL = {
    "window": 64,
    "hop": 16,
    "mel_bands": 12,
    "width": 16,
    "latent": 12,
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "num_codebooks": 4,
    "codebook_size": 32,
    "code_dim": 3,
}
DAC = {"encoder_dim": 4, "rates": [2, 4], "decoder_dim": 16, "num_codebooks": 3, "codebook_size": 16, "code_dim": 4}
ODD = DAC | {"rates": [2, 5]}
CASES = {
    "spectral": ("spectral", SPECTRAL),
    "spectral, noise and two spectra a frame": ("spectral", SPECTRAL | {"noise_bands": 6, "spectra_per_frame": 2}),
    "transformers": ("transformers", DAC),
    "transformers, odd stride": ("transformers", ODD),
    "descript": ("descript", DAC),
    "descript, odd stride": ("descript", ODD),
}


def make(backend: str, architecture: dict, seed: int = 0) -> codecs.Codec:
    if backend == "descript":
        pytest.importorskip("dac")
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the weight_norm that descript's package uses
        codec = codecs.build(Network(backend, "unused", architecture, None), AUDIO)
    return codec.eval()


@pytest.fixture(params=CASES, ids=list(CASES))
def codec(request) -> codecs.Codec:
    codec = make(*CASES[request.param])
    with torch.no_grad():  # random rows are alike in direction for small codebooks; spread them
        for layer in codec.quantizer.quantizers:
            layer.codebook.weight.normal_()
    return codec


def sound(batch: int, samples: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed)) * 0.3


@pytest.mark.parametrize("offset", [0, 1, -1])
def test_samples_to_frames_and_back_keep_the_length_contract(codec, offset):
    samples = 6 * codec.hop + offset
    codes = codec.encode(sound(2, samples))
    frames = -(-samples // codec.hop)
    assert codes.shape == (2, codec.num_codebooks, frames)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < codec.codebook_size
    assert codec.decode(codes).shape == (2, frames * codec.hop)


def test_a_single_sample_is_one_frame(codec):
    codes = codec.encode(sound(1, 1))
    assert codes.shape == (1, codec.num_codebooks, 1)
    assert codec.decode(codes).shape == (1, codec.hop)


def test_the_sum_of_the_tables_is_the_quantised_latent(codec):
    wav = sound(2, 8 * codec.hop)
    quantised, codes, *_ = codec.quantizer(codec.analyse(wav))
    tables = codec.tables()
    assert tables.rows.shape == (codec.num_codebooks, codec.codebook_size, codec.code_dim)
    assert tables.weight.shape == (codec.num_codebooks, codec.latent_dim, codec.code_dim)
    assert tables.bias.shape == (codec.num_codebooks, codec.latent_dim)
    total = sum(tables.latents()[k][codes[:, k]] for k in range(codec.num_codebooks))
    torch.testing.assert_close(total.transpose(1, 2), quantised, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(codec.quantizer.from_codes(codes)[0], quantised, atol=1e-5, rtol=1e-5)


def test_decoding_the_codes_is_the_forward_pass(codec):
    wav = sound(2, 8 * codec.hop)
    with torch.no_grad():
        output = codec(wav)
    torch.testing.assert_close(codec.decode(codec.encode(wav)), output.wav, atol=1e-5, rtol=1e-4)


def test_a_clip_is_coded_the_same_alone_and_in_a_batch(codec):
    wav = sound(3, 8 * codec.hop)
    assert torch.equal(codec.encode(wav)[1:2], codec.encode(wav[1:2]))


def test_gradients_reach_the_encoder_through_the_quantiser(codec):
    codec.train()
    codec(sound(2, 8 * codec.hop)).wav.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in codec.encoder.parameters() if p.ndim > 1)


def test_a_decoder_with_noise_repeats_itself_and_its_twins_differ_only_in_noise():
    codec = make("spectral", SPECTRAL | {"noise_bands": 6})
    codes = codec.encode(sound(3, 8 * codec.hop))
    assert torch.equal(codec.decode(codes), codec.decode(codes))
    torch.testing.assert_close(codec.decode(codes[1:2]), codec.decode(codes)[1:2], atol=1e-6, rtol=1e-5)
    assert torch.equal(make("spectral", SPECTRAL | {"noise_bands": 6}).decoder.noise, codec.decoder.noise)
    output = codec(sound(1, 8 * codec.hop), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(output.wav, output.twin)
    with torch.no_grad():
        codec.decoder.noise_gain.weight.zero_()
        codec.decoder.noise_gain.bias.fill_(-50)
    output = codec(sound(1, 8 * codec.hop), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(output.wav, output.twin)


def test_fewer_codebooks_decode_and_wrong_shapes_are_refused(codec):
    codes = codec.encode(sound(1, 4 * codec.hop))
    assert codec.decode(codes[:, :1]).shape == (1, 4 * codec.hop)
    for wrong in (codes[0], codes.repeat(1, 2, 1), codes[:, :0]):
        with pytest.raises(ValueError, match=r"codes are \[B, K, T\]"):
            codec.decode(wrong)
    for wrong in (sound(1, 8)[0], sound(1, 8)[:, :0]):
        with pytest.raises(ValueError, match="at least one sample"):
            codec.encode(wrong)


def test_a_saved_codec_comes_back_frozen_and_the_same(codec, tmp_path):
    save(tmp_path, codec, extra={"recipe": "none"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = load(tmp_path)
    assert again.fingerprint() == codec.fingerprint()
    wav = sound(1, 5 * codec.hop)
    assert torch.equal(again.decode(again.encode(wav)), codec.decode(codec.encode(wav)))
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.training


def test_the_fingerprint_tells_codecs_apart():
    assert make("spectral", SPECTRAL, 0).fingerprint() == make("spectral", SPECTRAL, 0).fingerprint()
    assert make("spectral", SPECTRAL, 0).fingerprint() != make("spectral", SPECTRAL, 1).fingerprint()


def test_an_unknown_backend_and_an_unknown_key_name_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'spectral'"):
        make("spectra", SPECTRAL)
    with pytest.raises(ConfigError, match=r"networks\.codec\.architecture\.widht.*'width'"):
        make("spectral", SPECTRAL | {"widht": 3})
    with pytest.raises(ConfigError, match="whole number"):
        make("spectral", SPECTRAL | {"hop": 24})
    with pytest.raises(ConfigError, match="power of two"):
        make("transformers", DAC | {"codebook_size": 24})


def test_weights_must_be_what_the_settings_say(tmp_path):
    save(tmp_path, make("spectral", SPECTRAL))
    weights = str(tmp_path)
    for architecture in (SPECTRAL, {}):
        assert load_weights(Network("spectral", weights, architecture, None), AUDIO).num_codebooks == 4
    with pytest.raises(ConfigError, match=r"width 16 \(settings: 24\)"):
        load_weights(Network("spectral", weights, SPECTRAL | {"width": 24}, None), AUDIO)
    with pytest.raises(ConfigError, match=r"sample_rate 16000 \(settings: 44100\)"):
        load_weights(Network("spectral", weights, SPECTRAL, None), Audio(44100, 1.0))
    with pytest.raises(ConfigError, match=r"backend 'spectral' \(settings: 'transformers'\)"):
        load_weights(Network("transformers", weights, {}, None), AUDIO)
    with pytest.raises(ConfigError, match="no saved codec"):
        load_weights(Network("spectral", str(tmp_path / "nowhere"), SPECTRAL, None), AUDIO)


def test_tampered_weights_and_another_network_are_refused(tmp_path):
    codec = make("spectral", SPECTRAL)
    save(tmp_path / "codec", codec)
    tensors = load_file(tmp_path / "codec" / store.WEIGHTS)
    tensors["quantizer.quantizers.0.codebook.weight"] += 1
    save_file(tensors, tmp_path / "codec" / store.WEIGHTS)
    with pytest.raises(ValueError, match="SHA-256"):
        load(tmp_path / "codec")
    store.save(tmp_path / "other", codec, "clap", {})
    with pytest.raises(ValueError, match="kind 'clap'"):
        load(tmp_path / "other")
    save(tmp_path / "lied", codec)
    sidecar = json.loads((tmp_path / "lied" / store.SIDECAR).read_text())
    sidecar["config"]["architecture"]["width"] = 24
    (tmp_path / "lied" / store.SIDECAR).write_text(json.dumps(sidecar))
    with pytest.raises(ValueError, match="do not fit its config"):
        load(tmp_path / "lied")


def test_weights_saved_by_one_package_load_through_the_other(tmp_path):
    codec = make("transformers", DAC)
    save(tmp_path, codec)
    pytest.importorskip("dac")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = load_weights(Network("descript", str(tmp_path), DAC, None), AUDIO)
    assert isinstance(other, DacCodec)
    assert other.backend == "descript"
    wav = sound(1, 10 * codec.hop)
    assert torch.equal(other.encode(wav), codec.encode(wav))
