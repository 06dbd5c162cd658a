"""Files that are wrong on purpose, one function for each way, so that every run shows what happens to them.

`BROKEN` maps a kind to (file suffix, reason with which the pipeline quarantines it, function that writes the file).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from siren import audio

RATE = 16000


def _tone(seconds: float = 1.6) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)


def _truncated(path: Path) -> None:
    audio.write(path, _tone(), RATE)
    path.write_bytes(path.read_bytes()[:20000])


def _truncated_flac(path: Path) -> None:
    audio.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, RATE), RATE)
    path.write_bytes(path.read_bytes()[:9000])


def _value(path: Path, value: float) -> None:
    wav = _tone().astype(np.float32)
    wav[1000:1010] = value
    audio.write(path, wav, RATE, "FLOAT")


BROKEN: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "zero-bytes": ("wav", "empty", lambda path: path.write_bytes(b"")),
    "header-only": ("wav", "empty", lambda path: audio.write(path, np.zeros(0), RATE)),
    "truncated": ("wav", "truncated", _truncated),
    "truncated-flac": ("flac", "corrupt", _truncated_flac),
    "text": ("wav", "corrupt", lambda path: path.write_text("404 Not Found\n" * 50)),
    "image": ("flac", "corrupt", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)),
    "random-bytes": ("wav", "corrupt", lambda path: path.write_bytes(np.random.default_rng(3).bytes(4096))),
    "nan": ("wav", "non_finite", lambda path: _value(path, np.nan)),
    "infinite": ("wav", "non_finite", lambda path: _value(path, np.inf)),
    "zeros": ("wav", "silent", lambda path: audio.write(path, np.zeros(RATE), RATE)),
    "direct-current": ("wav", "silent", lambda path: audio.write(path, np.full(RATE, 0.25), RATE)),
    "hiss": ("wav", "low_snr", lambda path: audio.write(path, 6e-4 * np.random.default_rng(2).normal(size=RATE), RATE)),
    "one-sample": ("wav", "too_short", lambda path: audio.write(path, np.array([0.5]), RATE)),
    "too-short": ("flac", "too_short", lambda path: audio.write(path, _tone(0.05), RATE)),
}
