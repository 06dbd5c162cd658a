"""A picture of a sound, for people who scroll through runs."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def draw(wav: Path, picture: Path) -> None:
    """A log-power spectrogram of a WAV file as PNG, 80 dB deep."""
    import soundfile
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples, rate = soundfile.read(wav, dtype="float32", always_2d=True)
    power = _power(samples.mean(axis=1))
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    extent = (0, max(len(samples), 1) / rate, 0, rate / 2000)
    top = float(power.max())
    axes.imshow(power, origin="lower", aspect="auto", extent=extent, vmin=top - 80, vmax=top, cmap="magma")
    axes.set(xlabel="seconds", ylabel="kHz", title=wav.stem)
    figure.savefig(picture, dpi=110)


def _power(wav: "np.ndarray", window: int = 512, hop: int = 128) -> "np.ndarray":
    """[S] → decibels [window/2+1, frames]."""
    import numpy as np

    padded = np.pad(wav, (0, max(0, window - len(wav))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    return 20 * np.log10(np.abs(np.fft.rfft(frames)).T + 1e-6)
