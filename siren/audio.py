"""Sound files and signals: reading, writing, channels, rate, mel filters and the measure of acoustic activity.

Everything that can be wrong with a sound file becomes one `AudioError` with a short stable reason, so that a caller
can quarantine the item. Signals are float32 with full scale 1.0. soundfile and soxr are imported where they are used.

Shapes: C channels · S samples.
"""

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

if TYPE_CHECKING:
    import soundfile
    import torch

ASSUMED_FLOOR = 1e-6  # power (-60 dBFS): a steady sound above it is taken for content, not for the recorder's noise
ABSURD = 1e6  # a float file may exceed full scale (1.0), even hold 16-bit values; beyond this it holds no sound
RATES_HZ = (1000, 768000)  # outside of it a header is wrong, and resampling would make anything of it
BLOCK = 2**22  # values that are decoded at once
LONGEST = 2**28  # values of all channels (1 GiB): 4.6 hours at 16 kHz, 47 minutes of stereo at 48 kHz
UNKNOWN = 2**60  # frames: libsndfile's way to say that it does not know
MANY_CHUNKS = 1000  # of a WAV before its samples
MIN_FLOOR = 1e-10  # power (-100 dBFS): digital silence counts as this much noise, which bounds the ratio


class AudioError(ValueError):
    """A sound file that cannot be used. `reason` is a stable code, `detail` a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def read(path: str | Path) -> tuple[np.ndarray, int]:
    """A sound file as float32 [C, S] and its sample rate in Hz.

    The format is that of the content, whatever the suffix says. Values beyond full scale (float files) are kept as they
    are. Raises `AudioError` with reason missing | not_a_file | unreadable | empty | truncated | corrupt | no_length |
    bad_rate | too_long | non_finite.
    """
    import soundfile

    path = Path(path)
    name = path.name.encode("utf-8", "backslashreplace").decode()  # names of files need not be text
    with _opened(path, name) as raw:
        size = os.fstat(raw.fileno()).st_size
        if size == 0:
            raise AudioError("empty", f"{name} has 0 bytes")
        head = raw.read(4)
        promised = _promised_size(raw)
        if promised is not None and promised > size + 1:  # many writers forget the byte that pads an odd chunk
            raise AudioError("truncated", f"{name} has {size} bytes, its header promises {promised}")
        raw.seek(0)
        try:
            with soundfile.SoundFile(
                raw.fileno(), closefd=False
            ) as file:  # by number: a suffix would choose the format
                frames, sample_rate, channels = file.frames, file.samplerate, file.channels
                wav = _decode(file, name)
        except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
            why = getattr(error, "error_string", str(error))
            raise AudioError("corrupt", f"{name} is not readable as sound: {why}") from None
    if len(wav) == 0 and head == b"OggS":  # its length is in the last page
        raise AudioError("truncated", f"{name} ends before its last page")
    if len(wav) == 0:
        raise AudioError("empty", f"{name} holds no samples")
    if len(wav) < frames:
        raise AudioError("truncated", f"{name} holds {len(wav)} of the {frames} samples its header promises")
    low, high = float(wav.min()), float(wav.max())  # NaN, where there is one
    if not (np.isfinite(low) and np.isfinite(high)):
        raise AudioError("non_finite", f"{name} holds {np.count_nonzero(~np.isfinite(wav))} NaN or infinite values")
    if max(high, -low) > ABSURD:
        raise AudioError("corrupt", f"{name} holds values up to {max(high, -low):.3g}; full scale is 1.0")
    assert wav.shape == (frames, channels)
    return wav.T, sample_rate


def _opened(path: Path, name: str) -> BinaryIO:
    """The file for reading. Never opens what is not a file: a pipe would wait for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise AudioError("not_a_file", f"{name} is a folder, a device or a pipe")
        return path.open("rb", buffering=0)
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError("missing", f"{name[:200]} does not exist") from None
    except OSError as error:  # permissions, links in a circle, names that are too long, a disk that fails
        raise AudioError("unreadable", f"{name[:200]} cannot be opened: {error.strerror}") from None
    except ValueError as error:  # a NUL, or what no file system can hold
        raise AudioError("missing", f"{name[:200]!r} is no name of a file: {error}") from None


def _decode(file: "soundfile.SoundFile", name: str) -> np.ndarray:
    """All samples [S, C]. In blocks, because the length that a header promises may be more than memory."""
    if file.frames > UNKNOWN:
        raise AudioError("no_length", f"{name} is a stream that does not say how long it is; encode it again")
    low, high = RATES_HZ
    if not low <= file.samplerate <= high:
        raise AudioError("bad_rate", f"{name} is at {file.samplerate} Hz; {low} to {high} Hz are sound")
    block, most = BLOCK // file.channels, LONGEST // file.channels
    blocks: list[np.ndarray] = []
    while len(blocks) * block <= most:
        blocks.append(file.read(block, dtype="float32", always_2d=True))
        if len(blocks[-1]) < block:
            return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    limit = f"{most / file.samplerate:.0f} s at its {file.channels} x {file.samplerate} Hz"
    raise AudioError("too_long", f"{name} is longer than {limit}; cut it into several files")


def _promised_size(raw: BinaryIO) -> int | None:
    """File size that the header of a WAV, RF64, AIFF or AU file promises for its samples; None where there is none.

    libsndfile reads a cut one without complaint, so a truncated download is only visible here. What matters is the
    chunk of samples: the size of the whole file is often wrong, and what follows the samples does not matter.
    """
    raw.seek(0)
    head = raw.read(12)
    if head[:4] == b".snd" and len(head) == 12:
        start, count = (int.from_bytes(head[i : i + 4], "big") for i in (4, 8))
        return None if count == 0xFFFFFFFF else start + count
    if head[:4] not in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
        return None
    order: Literal["big", "little"] = "big" if head[:4] in (b"RIFX", b"FORM") else "little"
    place, long = 12, None
    for _ in range(MANY_CHUNKS):
        raw.seek(place)
        chunk = raw.read(8 + 16)
        if len(chunk) < 8:
            return None  # no samples at all: libsndfile says what is wrong
        size = int.from_bytes(chunk[4:8], order)
        if chunk[:4] == b"ds64":
            long = int.from_bytes(chunk[16:24], "little")
        if chunk[:4] in (b"data", b"SSND"):
            if size == 0xFFFFFFFF:
                size = long or 0
            return place + 8 + size
        place += 8 + size + size % 2
    return None


def write(path: str | Path, wav: np.ndarray, sample_rate: int, subtype: str = "PCM_16") -> None:
    """Write [S] or [C, S] to a file whose format its suffix names (.wav, .flac). Subtypes are soundfile's.

    The same samples give the same bytes, at any time.
    """
    import soundfile

    wav = np.asarray(wav)
    if wav.ndim not in (1, 2):
        raise ValueError(f"a waveform is [S] or [C, S], not of shape {wav.shape}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wav.T if wav.ndim == 2 else wav, sample_rate, subtype=subtype)
    if subtype in ("FLOAT", "DOUBLE"):
        _forget_time(Path(path))


def _forget_time(path: Path) -> None:
    """libsndfile stamps float files with the time of writing (in the PEAK chunk, after its name, size and version)."""
    with path.open("r+b") as file:
        place = file.read(256).find(b"PEAK")
        if place >= 0:
            file.seek(place + 12)
            file.write(bytes(4))


def to_mono(wav: np.ndarray) -> np.ndarray:
    """Mean of all channels (paper, appendix A). [C, S] → [S], of one channel a view."""
    if wav.ndim == 1 or len(wav) == 1:
        return wav.reshape(-1)
    total = np.add(wav[0], wav[1], dtype=np.float32)  # numpy's mean is slow where channels are interleaved
    for channel in wav[2:]:
        total += channel
    return np.divide(total, np.float32(len(wav)), out=total)


def peak(wav: np.ndarray) -> float:
    """Largest absolute value."""
    return max(float(wav.max()), -float(wav.min()))


def resample(wav: np.ndarray, source: int, target: int) -> np.ndarray:
    """Band-limited resampling (soxr, high quality) of the last axis. [..., S] → [..., round(S * target / source)]"""
    if source <= 0 or target <= 0:
        raise ValueError(f"sample rates must be positive, not {source} and {target}")
    if source == target or wav.shape[-1] == 0:
        return np.asarray(wav, np.float32)
    import soxr

    if wav.ndim == 1:
        return soxr.resample(np.asarray(wav, np.float32), source, target, quality="HQ")
    flat = np.asarray(wav, np.float32).reshape(-1, wav.shape[-1])
    return np.stack([resample(channel, source, target) for channel in flat]).reshape(*wav.shape[:-1], -1)


def snr_db(wav: np.ndarray, sample_rate: int) -> float:
    """Acoustic activity: power of the active frames over the noise floor, in dB within [-20, 100]. wav [S]

    The paper asks for SNR > 6 dB and does not say how it is measured. Here, over frames of 20 ms every 10 ms: the
    floor is the 10th percentile of the frames' power, but never above -60 dBFS, because a sound that fills its clip
    (rain, an engine) leaves no pause to measure the floor in; active frames are those 3 dB above the floor; the
    ratio is (mean power of the active frames - floor) / floor. Where a clip has pauses and its noise lies below
    -60 dBFS, mixtures of 3 to 40 dB are estimated within 0.5 dB in white noise and within 3.3 dB (1.2 on average) in
    pink. Louder steady noise is indistinguishable from rain, and the estimate too high by up to what it is louder.
    """
    length = round(0.02 * sample_rate)
    hop = max(1, length // 2)
    frame = 2 * hop + length % 2
    count = max(0, len(wav) - frame) // hop + 1
    samples = wav if len(wav) >= frame else np.pad(wav, (0, frame - len(wav)))
    # A frame is two hops, and one sample more where its length is odd: a tenth of the time of a running sum.
    hops = samples[: (count + 1) * hop].reshape(-1, hop)
    hops = np.einsum("ij,ij->i", hops, hops).astype(np.float64)
    odd = samples[2 * hop :: hop][:count] ** 2 if length % 2 else 0.0
    power = (hops[:-1] + hops[1:] + odd) / frame
    floor = float(np.clip(np.percentile(power, 10), MIN_FLOOR, ASSUMED_FLOOR))
    active = power[power > 2 * floor]
    signal = float((active if len(active) else power).mean())
    return float(np.clip(10 * np.log10(max(signal - floor, 1e-30) / floor), -20.0, 100.0))


def mel_filterbank(
    num_bands: int,
    n_fft: int,
    sample_rate: int,
    fmin: float = 0.0,
    fmax: float | None = None,
    scale: Literal["htk", "slaney"] = "htk",
    norm: Literal["slaney"] | None = None,
) -> "torch.Tensor":
    """Triangular filters evenly spaced on the mel scale. float32 [num_bands, n_fft // 2 + 1]

    `scale` htk: 2595 log10(1 + f / 700); slaney: linear to 1 kHz, then logarithmic. `norm` slaney gives every
    triangle the same area. Raises ValueError for a range outside 0 .. sample_rate / 2.
    """
    import torch

    fmax = sample_rate / 2 if fmax is None else fmax
    if not 0 <= fmin < fmax <= sample_rate / 2:
        raise ValueError(f"mel range {fmin}-{fmax} Hz must lie within 0-{sample_rate / 2} Hz")
    edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin, scale), _hz_to_mel(fmax, scale), num_bands + 2), scale)
    bins = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    if norm == "slaney":
        filters *= 2 / (edges[2:] - edges[:-2])[:, None]
    return torch.from_numpy(filters.astype(np.float32))


def _hz_to_mel(hz: float, scale: str) -> float:
    if scale == "htk":
        return float(2595 * np.log10(1 + hz / 700))
    if scale != "slaney":
        raise ValueError(f"mel scale is {scale!r}; it must be 'htk' or 'slaney'")
    return float(hz * 3 / 200 if hz < 1000 else 15 + np.log(hz / 1000) * 27 / np.log(6.4))


def _mel_to_hz(mel: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
