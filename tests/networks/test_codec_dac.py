"""DAC through either package: the protocol gives what the package itself gives, and weights convert exactly.

Needs descript-audio-codec, which the second step of the installation brings; transformers' half runs without it.
"""

import pytest
import torch

from siren.config import ConfigError
from siren.networks import codec as codecs
from siren.networks.codec.dac import DacArchitecture, DacCodec, converted, from_hub, from_pth
from siren.tracking.promotion import SOFTWARE

EVEN = DacArchitecture(encoder_dim=4, rates=(2, 4), decoder_dim=16, num_codebooks=3, codebook_size=16, code_dim=4)
ODD = DacArchitecture(encoder_dim=4, rates=(2, 4, 5), decoder_dim=16, num_codebooks=3, codebook_size=16, code_dim=4)
both = pytest.mark.parametrize("architecture", [EVEN, ODD], ids=["even strides", "odd stride"])
filtered = pytest.mark.filterwarnings(
    "ignore:.*weight_norm.*:FutureWarning", "ignore:.*torch.jit.script.*:DeprecationWarning"
)
pytestmark = filtered


def random_codec(backend: str, architecture: DacArchitecture, seed: int = 0) -> DacCodec:
    if backend == "descript":
        pytest.importorskip("dac")
    torch.manual_seed(seed)
    codec = DacCodec(backend, architecture, 16000).eval()
    with torch.no_grad():
        for layer in codec.quantizer.quantizers:
            layer.codebook.weight.normal_()
        for name, parameter in codec.named_parameters():
            if name.endswith("alpha"):  # all ones at first: a swap of two would go unseen
                parameter.uniform_(0.5, 1.5)
            if name.endswith("weight_g"):  # equal to |v| at first: folding would go untested
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))
    return codec


def sound(codec: DacCodec, frames: int = 12) -> torch.Tensor:
    return torch.randn(2, frames * codec.hop, generator=torch.Generator().manual_seed(1)) * 0.3


@both
@pytest.mark.parametrize(("source", "target"), [("transformers", "descript"), ("descript", "transformers")])
def test_the_same_weights_give_the_same_codes_and_sound(architecture, source, target):
    first = random_codec(source, architecture)
    second = converted(first, target)
    wav = sound(first)
    codes = first.encode(wav)
    assert len(codes.unique()) > 4
    assert torch.equal(second.encode(wav), codes)
    torch.testing.assert_close(second.decode(codes), first.decode(codes), atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(vars(first.tables()).values(), vars(second.tables()).values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@both
def test_there_and_back_is_the_same_codec(architecture):
    codec = random_codec("transformers", architecture)
    again = converted(converted(codec, "descript"), "transformers")
    for name, tensor in codec.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=1e-7, rtol=1e-6)


@both
def test_the_protocol_gives_what_the_transformers_model_gives(architecture):
    from siren.networks.codec.dac import transformers_network

    codec = random_codec("transformers", architecture)
    model = transformers_network(architecture, 16000).eval()
    model.load_state_dict(codec.state_dict())
    wav = sound(codec)
    with torch.no_grad():
        encoded = model.encode(wav.unsqueeze(1))
        decoded = model.decode(audio_codes=encoded.audio_codes).audio_values
    assert torch.equal(codec.encode(wav), encoded.audio_codes)
    missing = wav.shape[1] - decoded.shape[1]
    assert missing == (8 if 5 in architecture.rates else 0)
    torch.testing.assert_close(codec.decode(encoded.audio_codes)[:, : decoded.shape[1]], decoded)
    assert codec.decode(encoded.audio_codes)[:, decoded.shape[1] :].abs().sum() == 0


@both
def test_the_protocol_gives_what_the_descript_package_gives(architecture):
    from siren.networks.codec.dac import descript_network

    codec = random_codec("descript", architecture)
    model = descript_network(architecture, 16000).eval()
    model.load_state_dict(codec.state_dict())
    wav = sound(codec)
    with torch.no_grad():
        latent, codes, *_ = model.encode(model.preprocess(wav.unsqueeze(1), 16000))
        decoded = model.decode(latent).squeeze(1)
    assert torch.equal(codec.encode(wav), codes)
    torch.testing.assert_close(codec.decode(codes)[:, : decoded.shape[1]], decoded, atol=1e-6, rtol=1e-5)


def test_a_folder_in_the_format_of_the_hub_loads_through_both(tmp_path):
    from siren.networks.codec.dac import transformers_network

    codec = random_codec("transformers", ODD)
    model = transformers_network(ODD, 16000)
    model.load_state_dict(codec.state_dict())
    model.save_pretrained(tmp_path)
    wav = sound(codec)
    codes = codec.encode(wav)
    for backend in ("transformers", "descript"):
        if backend == "descript":
            pytest.importorskip("dac")
        loaded = from_hub(str(tmp_path), backend).eval()
        assert loaded.architecture == ODD
        assert loaded.sample_rate == 16000
        assert torch.equal(loaded.encode(wav), codes)


def test_an_original_checkpoint_loads_through_both(tmp_path):
    codec = random_codec("descript", ODD)
    kwargs = {
        "encoder_dim": 4,
        "encoder_rates": [2, 4, 5],
        "latent_dim": None,
        "decoder_dim": 16,
        "decoder_rates": [5, 4, 2],
        "n_codebooks": 3,
        "codebook_size": 16,
        "codebook_dim": 4,
        "quantizer_dropout": 0.5,
        "sample_rate": 16000,
    }
    torch.save({"state_dict": codec.state_dict(), "metadata": {"kwargs": kwargs}}, tmp_path / "weights.pth")
    wav = sound(codec)
    for backend in ("descript", "transformers"):
        loaded = from_pth(tmp_path / "weights.pth", backend).eval()
        assert torch.equal(loaded.encode(wav), codec.encode(wav))


def test_what_the_descript_package_saves_loads(tmp_path):
    from siren.networks.codec.dac import descript_network

    codec = random_codec("descript", EVEN)
    model = descript_network(EVEN, 16000)
    model.load_state_dict(codec.state_dict())
    model.save(tmp_path / "weights.pth", package=False)
    loaded = from_pth(tmp_path / "weights.pth", "descript").eval()
    assert torch.equal(loaded.encode(sound(codec)), codec.encode(sound(codec)))


class Bomb:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    torch.save({"state_dict": {}, "metadata": Bomb()}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"more than plain tensors.*descript/dac_16khz"):
        from_pth(tmp_path / "weights.pth", "transformers")
    assert "unpickled" not in capsys.readouterr().out


def test_files_that_are_no_checkpoint_are_refused_with_advice(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="no 'metadata'"):
        from_pth(tmp_path / "other.pth", "transformers")
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is damaged"):
        from_pth(tmp_path / "broken.pth", "transformers")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE=0"):
        from_hub("descript/no_such_codec", "transformers")


def test_published_weights_say_their_own_licence_and_the_gate_knows_it(tmp_path):
    """A registered model lists the licence of its codec; one that is not told would never become champion."""
    file = tmp_path / "weights_16khz_8kbps_0.0.5.pth"
    file.write_bytes(b"some")
    for weights, name in (("descript/dac_16khz", "descript/dac_16khz"), (file, file.name)):
        told = codecs.extra(str(weights))
        assert told["weights"] == name
        assert SOFTWARE.fullmatch(told["licence"])
    assert len(told["weights_sha256"]) == 64
    copy = tmp_path / "descript" / "dac_44khz"
    assert codecs.extra(str(copy))["licence"] == "MIT"
    for other in ("somebody/dac_16khz", "weights.pth", str(tmp_path / "dac_16khz")):
        assert codecs.extra(other)["licence"] == "unknown"
