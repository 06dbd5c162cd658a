"""siren.audio: what comes in unreadable has a reason, and the measures have known values."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from siren import audio

RATE = 16000


def tone(seconds: float = 0.5, rate: int = RATE, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_wav_comes_back_as_channels_by_samples(tmp_path: Path, subtype: str) -> None:
    wav = np.stack([tone(), -0.5 * tone()])
    audio.write(tmp_path / "a.wav", wav, RATE, subtype)
    back, rate = audio.read(tmp_path / "a.wav")
    assert (back.shape, back.dtype, rate) == (wav.shape, np.float32, RATE)
    np.testing.assert_allclose(back, wav, atol=1e-4)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "DOUBLE"])
def test_the_same_samples_give_the_same_bytes_later(
    tmp_path: Path, subtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamped = []
    forget = audio._forget_time

    def later(path: Path) -> None:  # as libsndfile would have stamped it at another time
        data = bytearray(path.read_bytes())
        place = data.find(b"PEAK")
        if place >= 0:
            data[place + 12 : place + 16] = b"\x12\x34\x56\x78"
            stamped.append(path)
            path.write_bytes(data)
        forget(path)

    audio.write(tmp_path / "a.wav", tone(), RATE, subtype)
    monkeypatch.setattr(audio, "_forget_time", later)
    audio.write(tmp_path / "b.wav", tone(), RATE, subtype)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert len(stamped) == (1 if subtype == "FLOAT" or subtype == "DOUBLE" else 0)


def truncate(path: Path) -> None:
    audio.write(path, tone(), RATE)
    path.write_bytes(path.read_bytes()[:5000])


def truncate_flac(path: Path) -> None:
    audio.write(path, np.random.default_rng(0).normal(size=RATE).clip(-1, 1) * 0.5, RATE)
    path.write_bytes(path.read_bytes()[:9000])


BROKEN = {
    "missing": ("a.wav", lambda path: None),
    "empty": ("a.wav", lambda path: path.write_bytes(b"")),
    "empty-body": ("a.wav", lambda path: audio.write(path, np.zeros(0, np.float32), RATE)),
    "corrupt": ("a.wav", lambda path: path.write_text("these are words\n" * 40)),
    "corrupt-header": ("a.wav", lambda path: path.write_bytes(b"RIFF\0\0\0\0WAVEfmt " + bytes(30))),
    "truncated": ("a.wav", truncate),
    "truncated-flac": ("a.flac", truncate_flac),
    "non_finite": (
        "a.wav",
        lambda path: soundfile.write(path, np.array([0.1, np.nan, np.inf], np.float32), RATE, subtype="FLOAT"),
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_every_broken_file_has_a_reason(tmp_path: Path, kind: str) -> None:
    name, make = BROKEN[kind]
    make(tmp_path / name)
    with pytest.raises(audio.AudioError) as caught:
        audio.read(tmp_path / name)
    expected = {"truncated-flac": {"truncated", "corrupt"}}.get(kind, {kind.split("-")[0]})
    assert caught.value.reason in expected
    assert "a." in caught.value.detail


@pytest.mark.parametrize(("channels", "rate"), [(8, 48000), (1, 192000), (2, 22050)])
def test_many_channels_and_high_rates_become_16_khz_mono(tmp_path: Path, channels: int, rate: int) -> None:
    audio.write(tmp_path / "a.wav", np.stack([tone(1.0, rate)] * channels), rate)
    wav, source = audio.read(tmp_path / "a.wav")
    out = audio.resample(audio.to_mono(wav), source, RATE)
    assert abs(len(out) - RATE) <= 1
    np.testing.assert_allclose(out[2000:14000], tone(1.0)[2000:14000], atol=2e-3)


SIGNALS = {
    "noise": lambda t, rng: rng.normal(size=len(t)),
    "tone": lambda t, _: np.sqrt(2) * np.sin(2 * np.pi * 440 * t),
    "voice": lambda t, _: sum(np.sin(2 * np.pi * 150 * k * t) / k for k in range(1, 12)) / np.sqrt(0.785),
}


def mixture(kind: str, snr: float, duty: float, noise_dbfs: float, colour: float, seed: int) -> np.ndarray:
    """Four seconds of bursts twice a second in noise, `snr` dB above it while they sound, for `duty` of the time."""
    rng = np.random.default_rng(seed)
    t = np.arange(4 * RATE) / RATE
    spectrum = np.fft.rfft(rng.normal(size=len(t))) / np.maximum(1, np.arange(len(t) // 2 + 1)) ** (colour / 2)
    noise = np.fft.irfft(spectrum)
    noise *= 10 ** (noise_dbfs / 20) / noise.std()
    gate = (t * 2 + rng.uniform()) % 1 < duty
    return noise + gate * SIGNALS[kind](t, rng) * 10 ** ((noise_dbfs + snr) / 20)


def snr_errors(noise_dbfs: float, colour: float = 0.0) -> np.ndarray:
    """Estimated less true dB, over signals, ratios, shares of time and seeds."""
    return np.array(
        [
            audio.snr_db(mixture(kind, snr, duty, noise_dbfs, colour, seed), RATE) - snr
            for kind in SIGNALS
            for snr in (3.0, 6.0, 10.0, 20.0, 40.0)
            for duty in (0.2, 0.8)
            for seed in range(2)
        ]
    )


@pytest.mark.parametrize(("colour", "largest", "mean"), [(0.0, 0.6, 0.4), (1.0, 3.5, 1.3)])  # white, pink
def test_snr_of_known_mixtures_with_pauses(colour: float, largest: float, mean: float) -> None:
    """Pink noise, whose level wanders from frame to frame, is the harder: its quietest frames are below its mean."""
    errors = snr_errors(-65.0, colour)
    assert np.abs(errors).max() < largest
    assert np.abs(errors).mean() < mean


def test_snr_in_noise_above_the_assumed_floor_is_too_high_by_no_more_than_that() -> None:
    """What the estimator gives up so that rain and engines, which have no pauses, count as content."""
    errors = snr_errors(-45.0)
    assert errors.max() < 15 + 1.5
    assert 15 - 3 < np.median(errors) < 15


def test_snr_of_silence_hiss_and_steady_rain() -> None:
    noise = np.random.default_rng(0).normal(size=RATE)
    assert audio.snr_db(np.zeros(RATE), RATE) == -20
    assert audio.snr_db(0.0003 * noise, RATE) < 0  # -70 dBFS: the recorder's own noise
    assert audio.snr_db(0.05 * noise, RATE) > 6  # -26 dBFS without a pause: content


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("norm", [None, "slaney"])
def test_mel_filters_equal_those_of_transformers(scale: str, norm: str | None) -> None:
    from transformers.audio_utils import mel_filter_bank

    ours = audio.mel_filterbank(64, 1024, RATE, 50.0, 8000.0, scale, norm)  # type: ignore[arg-type]
    theirs = mel_filter_bank(513, 64, 50.0, 8000.0, RATE, norm=norm, mel_scale=scale)
    np.testing.assert_allclose(ours.numpy(), theirs.T, atol=1e-5)


def test_an_impossible_mel_range_is_named() -> None:
    with pytest.raises(ValueError, match="0-8000"):
        audio.mel_filterbank(40, 512, RATE, 0.0, 9000.0)
