"""Sound in chunks against sound at once."""

import pytest
import torch

from siren.config import Sampling
from siren.generate import streaming
from siren.generate.sampler import prepare, sample
from siren.generate.streaming import Window
from tests.model import builders
from tests.networks.test_codec import CASES, make

SAMPLING = Sampling(temperature=1.0, top_k=None, top_p=None, guidance=None)
CODECS = [name for name in CASES if "descript" not in name]


def codec_of(name):
    codec = make(*CASES[name])
    with torch.no_grad():
        for layer in codec.quantizer.quantizers:
            layer.codebook.weight.normal_()
    return codec.requires_grad_(False)


def decibels(difference, reference):
    return 20 * torch.log10(difference.abs().max() / reference.abs().max())


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("chunk", [3, 30])
def test_chunks_together_are_the_clip_decoded_at_once(name, chunk):
    codec = codec_of(name)
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(codec.codebook_size, (2, codec.num_codebooks, 90), generator=g)
    whole = codec.decode(codes)
    chunks = list(streaming.decode(codec, iter(codes.unbind(-1)), 90, chunk))
    assert len(chunks) > 1
    assert decibels(torch.cat(chunks, dim=1) - whole, whole) < -90  # -60 was asked for
    after = torch.cat(list(streaming.decode(codec, iter(codes[..., 30:].unbind(-1)), 60, chunk, codes[..., :30])), 1)
    assert after.shape == (2, 60 * codec.hop)
    if "noise" not in name:  # which is numbered from the new sound on
        assert decibels(after - whole[:, 30 * codec.hop :], whole) < -90


@pytest.mark.parametrize("name", CODECS)
def test_the_sound_of_a_frame_reaches_as_far_as_is_said_and_about_so_far(name):
    codec = codec_of(name)
    reach = codec.context
    latent = torch.randn(1, codec.latent_dim, 2 * reach + 13, generator=torch.Generator().manual_seed(1))
    latent.requires_grad_()
    middle = (reach + 6) * codec.hop
    codec.synthesise(latent)[0, middle : middle + codec.hop].square().sum().backward()
    heard = latent.grad[0].abs().sum(0).nonzero().flatten() - (reach + 6)
    assert max(-heard.min(), heard.max()) <= reach
    assert max(-heard.min(), heard.max()) >= reach - 3


def test_the_first_sound_comes_after_one_chunk_of_frames():
    codec, drawn = codec_of("transformers"), 0
    chunk = codec.context + 5

    def counted():
        nonlocal drawn
        for code in torch.zeros(1, codec.num_codebooks, 100, dtype=torch.long).unbind(-1):
            drawn += 1
            yield code

    sound = streaming.decode(codec, counted(), 100, chunk)
    assert next(sound).shape == (1, 5 * codec.hop)
    assert drawn == chunk


@pytest.mark.parametrize("name", ["siren", "delay"])
def test_a_window_that_is_not_full_is_the_sampler_and_a_full_one_slides(name):
    model = builders.arm(name)
    _, states, mask = builders.batch()
    window = Window.of(10, model.max_frames)
    assert window == Window(10, 5)

    def drawn(num_frames, prefix=None, seeds=(1, 2, 3)):
        run = streaming.codes(prepare(model), states, mask, seeds, num_frames, SAMPLING, window, prefix)
        return torch.stack(list(run), -1)

    assert torch.equal(drawn(10), sample(model, states, mask, [1, 2, 3], 10, SAMPLING).codes)
    long = drawn(40)  # the model has 24 positions
    assert long.shape == (3, 6, 40)
    if name == "siren":  # a delayed clip's last codes are drawn with another future at another length
        assert torch.equal(drawn(17), long[..., :17])
    assert not torch.equal(drawn(40, seeds=(1, 2, 4))[2], long[2])
    after = drawn(6, prefix=long[..., :8])
    assert after.shape == (3, 6, 6)
    assert torch.equal(after, drawn(6, prefix=long[..., 3:8]))  # the context is half a window
