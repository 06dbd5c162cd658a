"""Sound in chunks against sound at once."""

import pytest
import torch

from siren.generate import streaming
from siren.generate.sampler import prepare, sample
from siren.generate.streaming import Window
from tests.model import builders
from tests.model.builders import WHOLE
from tests.networks.test_codec import CASES, make

CODECS = [name for name in CASES if "descript" not in name]


def codec_of(name, **changes):
    backend, architecture = CASES[name]
    codec = make(backend, architecture | changes)
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
    chunks = list(streaming.decode(codec, iter(codes.unbind(-1)), 90 * codec.hop, chunk))
    assert len(chunks) > 1
    assert decibels(torch.cat(chunks, dim=1) - whole, whole) < -90  # -60 was asked for
    end = 60 * codec.hop - 1  # within the last frame
    after = torch.cat(list(streaming.decode(codec, iter(codes[..., 30:].unbind(-1)), end, chunk, codes[..., :30])), 1)
    assert after.shape == (2, end)
    if "noise" not in name:  # which is numbered from the new sound on
        assert decibels(after - whole[:, 30 * codec.hop : -1], whole) < -90


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

    sound = streaming.decode(codec, counted(), 100 * codec.hop, chunk)
    assert next(sound).shape == (1, 5 * codec.hop)
    assert drawn == chunk


@pytest.mark.parametrize("name", ["siren", "delay"])
def test_a_window_that_is_not_full_is_the_sampler_and_a_full_one_slides(name):
    model = builders.arm(name)
    _, states, mask = builders.batch()
    window = Window.of(10, model.max_frames)
    assert window == Window(10, 5)

    def drawn(num_frames, prefix=None, seeds=(1, 2, 3)):
        run = streaming.codes(prepare(model), states, mask, seeds, num_frames, WHOLE, window, prefix)
        return torch.stack(list(run), -1)

    assert torch.equal(drawn(10), sample(model, states, mask, [1, 2, 3], 10, WHOLE).codes)
    long = drawn(40)  # the model has 24 positions
    assert long.shape == (3, 6, 40)
    if name == "siren":  # a delayed clip's last codes are drawn with another future at another length
        assert torch.equal(drawn(17), long[..., :17])
    assert not torch.equal(drawn(40, seeds=(1, 2, 4))[2], long[2])
    after = drawn(6, prefix=long[..., :8])
    assert after.shape == (3, 6, 6)
    assert torch.equal(after, drawn(6, prefix=long[..., 3:8]))  # the context is half a window


def seams(wav, hop, borders):
    """How far sound jumps at the ends of frames [B, ends], and how far the spectra around them lie apart, in dB.

    Of each: (at borders of windows, at the other ends of frames).
    """
    ends = torch.arange(2, wav.shape[1] // hop - 2)
    cut, size = ends * hop, 2 * hop
    step = (wav[:, cut] - wav[:, cut - 1]).abs()
    near = cut[:, None] + torch.arange(size)
    spectra = [torch.fft.rfft(wav[:, i] * torch.hann_window(size)).abs() for i in (near - size, near)]
    before, after = (20 * torch.log10(spectrum + 1e-4) for spectrum in spectra)
    at = torch.isin(ends, torch.tensor(borders))
    return [(found[:, at], found[:, ~at]) for found in (step, (before - after).abs().mean(-1))]


def louder(found):
    """How many times the median and the 95 % quantile at borders are those elsewhere; the larger of the two."""
    at, elsewhere = found
    return max(torch.quantile(at, q) / torch.quantile(elsewhere, q) for q in (0.5, 0.95))


def test_the_borders_of_the_sliding_window_cannot_be_told_from_other_frames():
    """The level that `siren.generate.streaming` states, and that windows decoded one by one do not reach."""
    model, frames = builders.arm("siren"), 405
    codec = codec_of("spectral", num_codebooks=6, codebook_size=16)
    _, states, mask = builders.batch()
    window = Window.of(10, model.max_frames)
    borders = list(range(window.length, frames, window.length - window.context))
    run = streaming.codes(prepare(model), states, mask, [1, 2, 3], frames, WHOLE, window)
    codes = torch.stack(list(run), -1)
    stream = streaming.decode(codec, iter(codes.unbind(-1)), frames * codec.hop, 20)
    step, spectrum = seams(torch.cat(list(stream), 1), codec.hop, borders)
    assert step[0].shape == (3, len(borders))
    assert louder(step) < 1.2
    assert louder(spectrum) < 1.2
    parts = zip([0, *borders], [*borders, frames], strict=True)
    apart = torch.cat([codec.decode(codes[..., a:b], first=a) for a, b in parts], 1)
    assert louder(seams(apart, codec.hop, borders)[0]) > 1.3  # the measure hears a seam where there is one
