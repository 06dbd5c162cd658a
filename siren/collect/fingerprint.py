"""Whether two sounds are one recording, however it was encoded, scaled, resampled or shifted.

After Haitsma and Kalker, "A highly robust audio fingerprinting system" (ISMIR 2002): each frame becomes 32 bits, the
signs of differences of band energies along frequency and time. Their sign does not depend on the gain and seldom on the
encoding; two recordings of one kind of event differ in about half of them. Different from the paper, for speed: 4 kHz,
and the sound that is looked up has a frame every 64 ms, those in the index every 32 ms, so that no two that belong
together are more than 16 ms apart. Frames without energy have no bits: digital silence is the same everywhere.
Synthetic tones without any noise, of one pitch, may count as one recording.

Shapes: S samples · F frames.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from siren import audio

RATE = 4000  # Hz
FRAME = 1024  # samples: 256 ms
LAG = 256  # samples between the two energies whose difference is taken: 64 ms, the hop of a sound that is looked up
FINE = 2  # the index has so many frames for each of those
BANDS_HZ = (150.0, 1900.0)
QUIET = 1e-5  # a frame's energy over the loudest frame's, below which it has no bits (-50 dB)
MIN_FRAMES = 12  # in common: fewer agree by chance
MIN_SHARE = 0.5  # of the shorter one's frames, in common
TRIES = 5  # alignments that are compared in full, the likeliest first
MOST = 50  # entries of one value that are looked at

EDGES = np.searchsorted(np.fft.rfftfreq(FRAME, 1 / RATE), np.geomspace(*BANDS_HZ, 34))
WINDOW = np.hanning(FRAME).astype(np.float32)


def fingerprint(wav: np.ndarray, sample_rate: int, fine: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Bits of every frame, uint32 [F], and which frames have any, bool [F]. wav [S]; F is 0 below 320 ms."""
    import scipy.fft

    low = audio.resample(wav, sample_rate, RATE)
    if len(low) < FRAME + LAG:
        return np.zeros(0, np.uint32), np.zeros(0, bool)
    frames = np.lib.stride_tricks.sliding_window_view(low, FRAME)[:: LAG // fine] * WINDOW
    spectrum = scipy.fft.rfft(frames, overwrite_x=True)[:, : EDGES[-1]]
    energy = np.add.reduceat(spectrum.real**2 + spectrum.imag**2, EDGES[:-1], axis=1)  # [F + fine, 33]
    slopes = np.diff(energy, axis=1)
    loud = energy.sum(1)
    heard = loud > QUIET * max(float(loud.max()), 1e-20)
    bits = np.packbits(slopes[fine:] > slopes[:-fine], axis=1).view(">u4")[:, 0].astype(np.uint32)
    return bits, heard[fine:] & heard[:-fine]


@dataclass(frozen=True)
class Known:
    """A sound of the index, and the share of bits in which a sound that was looked up differs from it."""

    name: str
    group: str
    error_rate: float


class Index:
    """Fine fingerprints to look others up in: (name, group, bits, heard) each. Immutable, so that threads share it."""

    def __init__(self, entries: Iterable[tuple[str, str, np.ndarray, np.ndarray]]) -> None:
        self.entries = [entry for entry in entries if entry[3].sum() >= FINE * MIN_FRAMES]
        owners = [np.full(len(bits), number, np.int32) for number, (_, _, bits, _) in enumerate(self.entries)]
        places = [np.arange(len(bits), dtype=np.int32) for _, _, bits, _ in self.entries]
        heard = np.concatenate([heard for *_, heard in self.entries] or [np.zeros(0, bool)])
        bits = np.concatenate([bits for _, _, bits, _ in self.entries] or [np.zeros(0, np.uint32)])[heard]
        order = np.argsort(bits, kind="stable")
        self.bits = bits[order]
        self.owners = np.concatenate(owners or [np.zeros(0, np.int32)])[heard][order]
        self.places = np.concatenate(places or [np.zeros(0, np.int32)])[heard][order]

    def find(self, bits: np.ndarray, heard: np.ndarray, groups: Iterable[str], max_error_rate: float) -> Known | None:
        """The first sound of these groups that is the same recording, or None."""
        wanted, own = set(groups), np.flatnonzero(heard)
        if len(own) < MIN_FRAMES or not len(self.bits):
            return None
        starts, ends = (np.searchsorted(self.bits, bits[own], side) for side in ("left", "right"))
        votes: Counter[tuple[int, int]] = Counter()
        for place, start, end in zip(own.tolist(), starts.tolist(), ends.tolist(), strict=True):
            near = range(start, min(end, start + MOST))
            votes.update((int(self.owners[k]), int(self.places[k]) - FINE * place) for k in near)
        tried = 0
        for (number, shift), _ in sorted(votes.items(), key=lambda item: (-item[1], item[0])):
            name, group, other, other_heard = self.entries[number]
            if group not in wanted:
                continue
            rate = error_rate(bits, heard, other, other_heard, shift)
            if rate <= max_error_rate:
                return Known(name, group, rate)
            tried += 1
            if tried == TRIES:
                break
        return None


def error_rate(bits: np.ndarray, heard: np.ndarray, other: np.ndarray, other_heard: np.ndarray, shift: int) -> float:
    """Share of differing bits where frame i is the other's fine frame FINE * i + shift; 1 with too few in common."""
    places = FINE * np.arange(len(bits)) + shift
    inside = (places >= 0) & (places < len(other)) & heard
    inside[inside] = other_heard[places[inside]]
    common = int(inside.sum())
    if common < max(MIN_FRAMES, MIN_SHARE * min(int(heard.sum()), int(other_heard.sum()) // FINE)):
        return 1.0
    different = bits[inside] ^ other[places[inside]]
    return float(np.unpackbits(different.view(np.uint8)).sum()) / (32 * common)
