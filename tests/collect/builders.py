"""What the tests of segments have in common: their format, the rules, a tone."""

import numpy as np

from siren.config import Audio, Segment

FORMAT = Audio(16000, 1.6)
RULES = Segment(min_seconds=0.2, min_snr_db=6.0, silence_dbfs=-60.0)


def tone(seconds: float = 1.6, rate: int = 16000, level: float = 0.3) -> np.ndarray:
    """440 Hz. [S]"""
    return level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
