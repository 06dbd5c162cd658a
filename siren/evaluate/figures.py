"""Figures: spectrograms, curves, heat maps and distributions, for two places at once.

MLflow and `reports/analysis/` get PNGs on white (`to_png`); the report gets SVGs whose ink is the colour of the page's
own text (`to_svg`), so that one drawing reads in light and in dark. Colours are distinct for colour-blind readers and
have the same contrast on both grounds. The bytes depend on nothing but the data: no dates, no random ids.

Shapes: S samples · K codebooks · C classes.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from siren.audio import mel_filterbank

INK = "#0a0b0c"  # text and axes; `to_svg` turns it into the page's text colour
PALETTE = ("#2f7fd1", "#d9730d", "#1f9e89", "#c2478f", "#8a8f98", "#7b61c9")
LEVELS = (-80.0, -10.0)  # dB re a full-scale sine, the ends of every spectrogram's colour scale
COLUMNS, BANDS = 256, 80
SIZE = (4.7, 2.9)  # inches; at 72 dots each it fits a phone's width without being scaled down
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.dpi": 72,
    "svg.fonttype": "none",
    "svg.hashsalt": "siren",
}

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # name → (x, y)


@contextmanager
def drawing(width: float = SIZE[0], height: float = SIZE[1]) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes in this project's style."""
    with panels(1, 1, width, height) as (figure, ((axes,),)):
        yield figure, axes


@contextmanager
def panels(rows: int, columns: int, width: float, height: float) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure with a grid of axes [rows, columns] in this project's style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False)


def to_png(figure: Figure, dpi: int = 144) -> bytes:
    """PNG on white, without a date or a program's name in it."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure) -> str:
    """An `<svg>` element to put into a page: transparent, in the page's text colour and font, as wide as its place."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    return re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)


def spectrogram_db(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mel power in dB relative to a full-scale sine, floored at the scale's low end. [S] → [BANDS, COLUMNS]

    The number of columns is fixed, so pictures of clips of one length are comparable column by column.
    """
    window = round(0.032 * sample_rate)
    n_fft = 1 << (max(window, sample_rate // 20) - 1).bit_length()
    padded = np.pad(np.asarray(wav, np.float64), window // 2)
    starts = np.linspace(0, max(len(padded) - window, 0), COLUMNS).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(padded, (0, window)), window)[starts]
    hann = np.hanning(window)
    power = np.abs(np.fft.rfft(frames * hann, n_fft)) ** 2 * (2 / hann.sum()) ** 2
    mel = mel_filterbank(BANDS, n_fft, sample_rate).numpy().astype(np.float64) @ power.T
    return 10 * np.log10(np.maximum(mel, 10 ** (LEVELS[0] / 10)))


def spectrogram_png(wav: np.ndarray, sample_rate: int) -> bytes:
    """The bare picture, COLUMNS x BANDS pixels in 64 colours (about 10 KB), for a page that draws its own axes."""
    from PIL import Image

    low, high = LEVELS
    steps = np.clip((spectrogram_db(wav, sample_rate) - low) / (high - low), 0, 1)
    image = Image.fromarray(np.round(steps[::-1] * 63).astype(np.uint8), "P")
    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, 64))[:, :3]
    image.putpalette(np.round(colours * 255).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def spectrogram(wav: np.ndarray, sample_rate: int, title: str = "") -> Figure:
    """A log-mel spectrogram with axes in seconds and kHz, on the same colour scale for every clip. wav [S]"""
    with drawing(SIZE[0], 2.4) as (figure, axes):
        seconds = len(wav) / sample_rate
        image = axes.imshow(
            spectrogram_db(wav, sample_rate),
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, BANDS),
            cmap="magma",
            vmin=LEVELS[0],
            vmax=LEVELS[1],
        )
        top = 2595 * np.log10(1 + sample_rate / 2 / 700)
        hertz = [h for h in (0, 500, 1000, 2000, 4000, 8000, 16000) if h <= sample_rate / 2]
        axes.set_yticks([BANDS * 2595 * np.log10(1 + h / 700) / top for h in hertz], [f"{h / 1000:g}" for h in hertz])
        axes.set(xlabel="seconds", ylabel="kHz", title=title)
        axes.grid(False)
        figure.colorbar(image, ax=axes, label="dB").outline.set_visible(False)
    return figure


def curves(
    series: Series,
    x: str,
    y: str,
    title: str = "",
    ordered: bool = False,
    bands: Series | None = None,
    whole: bool = True,
    line: tuple[str, float] | None = None,
) -> Figure:
    """Lines over a common x. `ordered` colours them by depth (codebooks), otherwise each has a colour of its own.

    bands: intervals (low, high) of the series that have them, by the same names. `whole`: x has whole numbers only.
    `line`: a dashed one that stands at an x, such as ("kept", 0.4).
    """
    with drawing() as (figure, axes):
        colours = _colours(len(series), ordered)
        for colour, name in zip(colours, series, strict=True):
            if bands and name in bands:
                axes.fill_between(series[name][0], *bands[name], color=colour, alpha=0.18, linewidth=0)
        for colour, (name, (xs, ys)) in zip(colours, series.items(), strict=True):
            marker = "o" if len(xs) < 12 else None
            axes.plot(xs, ys, color=colour, label=name, marker=marker, markersize=3.5)
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=whole))
        if line is not None:
            axes.axvline(line[1], color=INK, linestyle="--", linewidth=1, label=f"{line[0]} {line[1]:g}")
        if len(series) > 1 or line is not None:
            axes.legend(ncols=1 + (len(series) > 4))
    return figure


def smooth(values: Sequence[float], width: int) -> np.ndarray:
    """Centred moving average over `width` points, narrower at the ends. Raises ValueError for a width below 1."""
    if width < 1:
        raise ValueError(f"smoothing width is {width}; at least 1 is needed")
    kernel = np.ones(min(width, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def confusion(counts: np.ndarray, labels: Sequence[str], heard: Sequence[str] | None = None, title: str = "") -> Figure:
    """What was prompted (rows) against what the judge heard (columns), as shares of each row. counts [C, C]"""
    counts = np.asarray(counts, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return heat_map(shares, labels, heard or labels, (0.0, 1.0), "prompted", "heard", title, percent=True)


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    limits: tuple[float, float],
    y: str = "",
    x: str = "",
    title: str = "",
    percent: bool = False,
) -> Figure:
    """A matrix with its numbers written in; colours go from 0, or diverge where the limits have both signs."""
    values = np.asarray(values, float)
    side = 1.6 + 0.32 * len(columns)
    with drawing(max(SIZE[0], side), max(SIZE[1], 1.0 + 0.28 * len(rows))) as (figure, axes):
        colours = _diverging() if limits[0] < 0 else _sequential()
        axes.pcolormesh(values, cmap=colours, vmin=limits[0], vmax=limits[1])
        axes.invert_yaxis()
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90 if max(map(len, columns)) > 3 else 0)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for (row, column), value in np.ndenumerate(values):
            if percent and value < 0.005:
                continue
            strong = abs(value) > 0.55 * max(map(abs, limits))
            text = f"{100 * value:.0f}" if percent else f"{value:.2f}"
            colour = "white" if strong else INK
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7.5, color=colour)
    return figure


def distributions(edges: Sequence[float], densities: Mapping[str, Sequence[float]], x: str, title: str = "") -> Figure:
    """Histograms as outlines over common bins; `densities` sum to 1 over the bins. Coloured by order."""
    with drawing() as (figure, axes):
        for colour, (name, heights) in zip(_colours(len(densities), True), densities.items(), strict=True):
            axes.stairs(heights, edges, color=colour, label=name, linewidth=1.6)
        axes.set(xlabel=x, ylabel="share", title=title, xlim=(edges[0], edges[-1]))
        axes.legend(title="interval", title_fontsize=8, ncols=1 + (len(densities) > 6))
    return figure


def bars(
    names: Sequence[str],
    values: Sequence[float],
    x: str,
    y: str,
    intervals: Sequence[tuple[float, float]] | None = None,
    line: tuple[str, float] | None = None,
    title: str = "",
    share: bool = False,
) -> Figure:
    """One bar for each name, with intervals (low, high) and a dashed line such as ("chance", 0.08) where given.

    A `share` has its whole range, 0 to 1, on the axis.
    """
    with drawing() as (figure, axes):
        at = np.arange(len(names))
        axes.bar(at, values, width=0.62, color=PALETTE[0])
        if intervals is not None:
            low, high = np.asarray(intervals, float).T
            axes.errorbar(at, values, [values - low, high - values], fmt="none", ecolor=INK, elinewidth=1, capsize=3)
        if line is not None:
            axes.axhline(line[1], color=PALETTE[1], linestyle="--", linewidth=1.2, label=f"{line[0]} {line[1]:.2f}")
            axes.legend()
        axes.set_xticks(at, names, rotation=90 if len(names) * max(map(len, names)) > 50 else 0)
        axes.grid(axis="x", visible=False)
        axes.set(xlabel=x, ylabel=y, title=title)
        if share:
            axes.set_ylim(0, 1.02)
    return figure


def maps(points: Mapping[str, Sequence[Sequence[float]]], labels: Sequence[str]) -> Figure:
    """Points in the plane, a panel for each name, coloured by label; point i of every panel has labels[i]."""
    names = sorted(set(labels))
    hues = dict(zip(names, matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(names))), strict=True))
    colours = [hues[label] for label in labels]
    columns = 3 if len(points) > 2 else len(points)
    rows = -(-len(points) // columns)
    legend = -(-len(names) // 4)
    with panels(rows, columns, SIZE[0], 1.65 * rows + 0.2 * legend) as (figure, grid):
        for axes in grid.flat[len(points) :]:
            axes.set_visible(False)
        for axes, (title, places) in zip(grid.flat, points.items(), strict=False):
            x, y = np.asarray(places, float).T
            axes.scatter(x, y, s=5, c=colours, linewidths=0)
            axes.set(title=title, xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
            axes.grid(False)
        dots = [Line2D([], [], linestyle="", marker="o", markersize=4, color=hues[name]) for name in names]
        figure.legend(dots, names, loc="outside lower center", ncols=4, handletextpad=0, columnspacing=1)
    return figure


def boxes(groups: Mapping[str, Sequence[float]], x: str, marks: Mapping[str, float] | None = None) -> Figure:
    """Quartiles and extremes of each group with every value as a dot; `marks` are values of reference, in red."""
    with drawing(SIZE[0], 0.9 + 0.5 * len(groups)) as (figure, axes):
        at = np.arange(len(groups), 0, -1)
        ink: Any = {f"{part}props": {"color": INK, "linewidth": 1} for part in ("box", "whisker", "cap", "median")}
        axes.boxplot(list(groups.values()), positions=at, orientation="horizontal", whis=(0, 100), widths=0.5, **ink)
        for y, values, colour in zip(at, groups.values(), _colours(len(groups), False), strict=True):
            spread = np.linspace(-0.14, 0.14, len(values)) if len(values) > 1 else [0.0]
            axes.scatter(values, y + np.asarray(spread), s=14, color=colour, zorder=3)
        for y, name in zip(at, groups, strict=True):
            if marks and name in marks:
                axes.plot([marks[name]] * 2, [y - 0.3, y + 0.3], color="#d43f3f", linewidth=2, zorder=4)
        axes.set_yticks(at, list(groups))
        axes.set(xlabel=x)
    return figure


def _colours(count: int, ordered: bool) -> list[object]:
    if not ordered:
        return [PALETTE[i % len(PALETTE)] for i in range(count)]
    ramp = LinearSegmentedColormap.from_list("depth", ["#3f7fe0", "#1f9e89", "#b58a1a", "#d4622a", "#c2478f"])
    return [ramp(v) for v in np.linspace(0, 1, max(count, 2))][:count]


def _sequential() -> Colormap:
    """From transparent to blue, so that an empty cell is the page itself."""
    return LinearSegmentedColormap.from_list("ink", [(0.18, 0.5, 0.82, 0.04), (0.18, 0.5, 0.82, 1.0)])


def _diverging() -> Colormap:
    ends = [(0.85, 0.45, 0.05, 1.0), (0.5, 0.5, 0.5, 0.06), (0.18, 0.5, 0.82, 1.0)]
    return LinearSegmentedColormap.from_list("balance", ends)
