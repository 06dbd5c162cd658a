"""Samples to bytes, as a whole or as they come."""

import io
import struct
from collections.abc import Mapping

import numpy as np

HEADER_BYTES = 44
MEDIA: Mapping[str, str] = {"wav": "audio/wav", "flac": "audio/flac"}


def wav_header(num_samples: int, sample_rate: int) -> bytes:
    """The head of a mono WAV of 16 bits, whose length is known before its samples are."""
    size = 2 * num_samples
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", size + HEADER_BYTES - 8, b"WAVE") + form + struct.pack("<4sI", b"data", size)


def pcm(wav: np.ndarray, sample_rate: int) -> bytes:
    """Samples [S] in [-1, 1] as 16 bits, rounded and clipped as libsndfile does it."""
    return _encoded(wav, sample_rate, "RAW")


def encode(wav: np.ndarray, sample_rate: int, format: str) -> bytes:
    """A whole file, `wav` or `flac`."""
    if format == "wav":
        return wav_header(len(wav), sample_rate) + pcm(wav, sample_rate)
    return _encoded(np.frombuffer(pcm(wav, sample_rate), np.int16), sample_rate, "FLAC")  # the samples of the wav


def _encoded(wav: np.ndarray, sample_rate: int, container: str) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wav, sample_rate, subtype="PCM_16", format=container)
    return file.getvalue()
