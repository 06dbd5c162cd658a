"""What a run sounded like, for people who look through MLflow: a spectrogram of each sound, a page with all players.

The page holds its sounds and pictures itself, because MLflow shows an artifact in a frame that can load nothing else.
Where MLflow compares runs, that frame is 150 pixels high: there the page shows one sound at a time, and snaps to it.
"""

import base64
import html
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LIMIT_BYTES = 30_000_000  # sounds on a page; further ones are named, and lie in the folder `audio`
STYLE = """\
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }
h2 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
.sounds { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: min(22rem, 100%); }
img, audio { width: 100%; display: block; } figcaption { font-size: .85rem; }
@media (max-height: 240px) {
  html { scroll-snap-type: y mandatory; } body { margin: 0 .3rem; font-size: 11px; } h1, h2 { display: none; }
  .sounds { display: block; } figure { height: 100vh; width: 100%; scroll-snap-align: start; overflow: hidden; }
  figure { display: flex; flex-direction: column; } img { flex: 1; min-height: 0; object-fit: fill; }
  audio { height: 32px; flex: none; } figcaption { order: -1; white-space: nowrap; font-size: 0; }
  figcaption::after { content: attr(data-name); font-size: 11px; }
}"""


def page(title: str, sounds: Iterable[tuple[str, Path, Path]]) -> str:
    """HTML with a player and a picture for each sound: (name, WAV file, picture). `folder/name` groups by folder."""
    groups: dict[str, list[str]] = {}
    total = 0
    for name, wav, picture in sounds:
        total += wav.stat().st_size
        group, _, own = name.rpartition("/")
        shown = (
            _figure(name, own, wav, picture) if total <= LIMIT_BYTES else f"<p>{html.escape(own)}: see audio/{name}</p>"
        )
        groups.setdefault(group, []).append(shown)
    body = "\n".join(
        f"<h2>{html.escape(group)}</h2>\n<div class=sounds>{''.join(shown)}</div>" for group, shown in groups.items()
    )
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"{head}\n<h1>{html.escape(title)}</h1>\n{body}\n"


def _figure(name: str, own: str, wav: Path, picture: Path) -> str:
    def data(path: Path, kind: str) -> str:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"

    image = f'<img alt="spectrogram" src="{data(picture, "image/png")}">'
    player = f'<audio controls preload="metadata" src="{data(wav, "audio/wav")}"></audio>'
    caption = f'<figcaption data-name="{html.escape(name)}">{html.escape(own)}</figcaption>'
    return f"<figure>{image}{player}{caption}</figure>"


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
    axes.set(xlabel="seconds", ylabel="kHz")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def _power(wav: "np.ndarray", window: int = 512, hop: int = 128) -> "np.ndarray":
    """[S] → decibels [window/2+1, frames]."""
    import numpy as np

    padded = np.pad(wav, (0, max(0, window - len(wav))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    return 20 * np.log10(np.abs(np.fft.rfft(frames)).T + 1e-6)
