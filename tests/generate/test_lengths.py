"""Clips of any length: as long as asked for to the sample, without seams, at a cost that grows with the length only.

The model is random and has the demo's frames, 40 ms, and clips of 1.6 s; what is longer slides its window.
"""

import gc
import itertools
import time

import numpy as np
import pytest
import torch

from siren.generate import batch
from siren.generate.bundle import LONGEST_SECONDS, Bundle
from tests.generate import builders

RATE, HOP = 16000, 640
TEN, THIRTY = (pytest.param(seconds, marks=pytest.mark.slow) for seconds in (10, 30))
PROMPTS, SEEDS = ["a dog barks", "rain falls"], [3, 4]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    made = builders.bundle(1.6, window=1280, hop=320, spectra_per_frame=2, noise_bands=4)
    assert (made.codec.hop, made.window.length) == (HOP, 40)
    return made


def sampled(bundle: Bundle, seconds: float) -> np.ndarray:
    return np.stack(bundle.sample(PROMPTS, SEEDS, float(seconds)))


@pytest.mark.parametrize("seconds", [1.0, 1.0001, 1.013, 3.0, 2.99997, 1e-9])
def test_a_clip_ends_at_the_sample_that_was_asked_for(bundle, seconds):
    expected = max(1, round(seconds * RATE))
    assert bundle.num_samples(seconds) == expected
    wavs = sampled(bundle, seconds)
    assert wavs.shape == (2, expected)
    assert np.isfinite(wavs).all()
    streamed = np.concatenate(list(bundle.stream(PROMPTS, SEEDS, seconds)), axis=1)
    assert streamed.shape == wavs.shape
    assert np.abs(streamed - wavs).max() < 1e-3 * np.abs(wavs).max()


@pytest.mark.parametrize("seconds", [10, THIRTY])
def test_long_clips_have_sound_to_their_last_sample(bundle, seconds):
    wavs = sampled(bundle, seconds)
    assert wavs.shape == (2, seconds * RATE)
    assert np.isfinite(wavs).all()
    loudness = np.sqrt(np.square(wavs.reshape(2, seconds, RATE)).mean(-1))  # of each second
    assert loudness.min() > 0.2 * np.median(loudness)
    assert loudness.max() < 5 * np.median(loudness)


def test_a_longer_clip_begins_with_the_shorter_one(bundle):
    """Up to what the shorter one's last frames were decoded without; in the same frame, to the sample."""
    lengths = [0.5, 0.51, 1.6, 3.0]
    clips = [sampled(bundle, seconds) for seconds in lengths]
    for short, long in itertools.pairwise(clips):
        same = (-(-short.shape[1] // HOP) - bundle.codec.context) * HOP
        assert same > 0.6 * short.shape[1]
        assert np.abs(short[:, :same] - long[:, :same]).max() < 1e-3 * np.abs(short).max()
    assert np.array_equal(sampled(bundle, 0.511), sampled(bundle, 0.52)[:, : round(0.511 * RATE)])


@pytest.mark.parametrize("seconds", [3, TEN, THIRTY])
def test_a_clip_that_is_decoded_in_pieces_has_no_seam(bundle, seconds, monkeypatch):
    """Against the same codes decoded in one piece: everywhere, so at the borders of pieces too."""
    lengths, decode = [], bundle.codec.decode
    monkeypatch.setattr(
        bundle.codec, "decode", lambda codes, first=0: lengths.append(codes.shape[-1]) or decode(codes, first)
    )
    monkeypatch.setattr("siren.generate.bundle.DECODED_SECONDS", 1000.0)
    whole = sampled(bundle, seconds)
    assert lengths == [-(-seconds * RATE // HOP)]
    lengths.clear()
    monkeypatch.setattr("siren.generate.bundle.DECODED_SECONDS", 0.9)
    pieces = sampled(bundle, seconds)
    assert len(lengths) >= seconds
    assert max(lengths) <= round(0.9 * RATE / HOP) + 2 * bundle.codec.context + 1
    assert np.abs(pieces - whole).max() < 1e-3 * np.abs(whole).max()


def held() -> int:
    """Bytes of the tensors that are alive."""
    gc.collect()
    kept = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if type(t) is torch.Tensor
    }
    return sum(kept.values())


@pytest.mark.slow
def test_memory_of_a_long_clip_is_that_of_its_window(bundle):
    told = [bundle.memory(2, seconds) for seconds in (3.0, 30.0, LONGEST_SECONDS)]
    assert [m["sound"] for m in told] == [8 * 48_000, 8 * 480_000, 8 * 9_600_000]
    assert len({m["total"] - m["sound"] for m in told}) == 1
    made, found = 0, []
    for piece in bundle.stream(PROMPTS, SEEDS, 30.0):
        made += piece.shape[1]
        if made // RATE in (2, 28) and len(found) < made // RATE / 14 + 0.5:
            found.append(held())
    assert made == 30 * RATE
    early, late = found
    assert late <= 1.01 * early


@pytest.mark.slow
def test_time_grows_with_the_length_and_no_faster(bundle):
    took = {}
    for seconds in (1, 10, 30):
        begun = time.process_time()
        sampled(bundle, seconds)
        took[seconds] = time.process_time() - begun
    assert took[30] < 2 * 3 * took[10]
    assert took[10] < 3 * 10 * took[1]


def test_what_no_clip_can_be_is_refused_with_the_limit(bundle):
    for seconds in (0.0, -1.0, float("nan"), float("inf"), LONGEST_SECONDS + 1):
        with pytest.raises(ValueError, match="a clip has more than 0 and at most 600"):
            bundle.num_samples(seconds)


def test_beyond_the_window_it_is_said_what_the_model_knows(bundle):
    assert bundle.slides(1.6) == bundle.slides(None) == ""
    assert "longer than the 1.6 s" in bundle.slides(1.61)
    assert "the last 0.8 to 1.6 s" in bundle.slides(10.0)


def test_what_is_continued_is_heard_up_to_its_last_sample(bundle):
    """Its first samples are left out where it is no whole number of frames, not its last ones padded."""
    wav = np.random.default_rng(0).normal(0, 0.1, 3 * HOP + 100).astype(np.float32)
    assert bundle.encode(wav).shape[-1] == 3
    assert torch.equal(bundle.encode(wav), bundle.encode(wav[100:]))
    ends = np.concatenate([0 * wav[:-100], wav[-100:]])
    assert not torch.equal(bundle.encode(ends), bundle.encode(0 * wav))
    assert bundle.encode(wav[:50]).shape[-1] == 1
    assert bundle.encode(np.tile(wav, 99)).shape[-1] == bundle.window.context


@pytest.mark.parametrize("way", ["whole", "streamed", "continued", "chosen"])
def test_files_and_their_sidecars_tell_one_length(bundle, tmp_path, way):
    import json

    import soundfile

    prefix = bundle.encode(np.zeros(5 * HOP, np.float32)) if way == "continued" else None
    facts = {"model": "a model", "model_sha256": "1", "sample_rate": RATE}
    samples = bundle.num_samples(0.333)
    job = batch.Job(samples, builders.SAMPLING, facts, 2 if way == "chosen" else 1, ".wav", prefix)
    (clip,) = wanted = batch.clips(["rain"], 5, 1, tmp_path, ".wav")
    list(batch.make_streaming(bundle, clip, job) if way == "streamed" else batch.make(bundle, wanted, job, 1))
    told = json.loads(clip.path.with_suffix(".json").read_text())
    assert samples == soundfile.info(clip.path).frames == told["samples"] == 5328
    assert told["seconds"] == 5328 / RATE
    assert batch.finished(clip, job)
