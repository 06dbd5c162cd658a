"""Figures: what is drawn is what was measured, and the bytes depend on nothing else."""

import io
import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from siren.evaluate import figures

RATE = 16000


def tone(hertz: float, seconds: float = 1.6, level: float = 1.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(RATE * seconds)) / RATE)).astype(np.float32)


def mel(hertz: float) -> float:
    return 2595 * np.log10(1 + hertz / 700)


@pytest.mark.parametrize("hertz", [200, 1000, 3000, 7000])
def test_a_tone_is_brightest_at_its_frequency(hertz: float) -> None:
    picture = figures.spectrogram_db(tone(hertz), RATE)
    brightest = np.median(picture[:, 20:-20].argmax(axis=0))
    assert brightest + 1 == pytest.approx(mel(hertz) / mel(RATE / 2) * (figures.BANDS + 1), abs=1.0)


def test_a_full_scale_tone_is_near_0_db_and_20_db_less_is_20_db_less() -> None:
    loud = figures.spectrogram_db(tone(1000), RATE)[:, 20:-20].max()
    quiet = figures.spectrogram_db(tone(1000, level=0.1), RATE)[:, 20:-20].max()
    assert loud == pytest.approx(0, abs=4)  # a mel band adds up the few bins of the window's main lobe
    assert loud - quiet == pytest.approx(20, abs=0.01)


def test_time_runs_from_left_to_right() -> None:
    wav = np.concatenate([np.zeros(RATE), tone(1000, 1.0)])
    picture = figures.spectrogram_db(wav, RATE)
    half = figures.COLUMNS // 2
    assert picture[:, : half - 8].max() == figures.LEVELS[0]
    assert picture[:, half + 8 : -8].max(axis=0).min() > -10


@pytest.mark.parametrize("samples", [0, 1, 100, 25600, 160000])
def test_every_length_gives_the_same_size(samples: int) -> None:
    picture = figures.spectrogram_db(np.zeros(samples, np.float32), RATE)
    assert picture.shape == (figures.BANDS, figures.COLUMNS)
    assert np.isfinite(picture).all()


def test_the_bare_picture_is_small_and_low_frequencies_are_at_the_bottom() -> None:
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32) * 0.1
    assert len(figures.spectrogram_png(noise, RATE)) < 20_000
    image = np.asarray(Image.open(io.BytesIO(figures.spectrogram_png(tone(150), RATE))).convert("L"), int)
    assert image.shape == (figures.BANDS, figures.COLUMNS)
    assert image[: figures.BANDS // 2].mean() < image[figures.BANDS // 2 :].mean()


def drawn() -> dict[str, figures.Figure]:
    rng = np.random.default_rng(1)
    steps = list(range(5))
    return {
        "spectrogram": figures.spectrogram(tone(440), RATE, "a tone"),
        "curves": figures.curves({"a": (steps, rng.random(5)), "b": (steps, rng.random(5))}, "step", "loss"),
        "confusion": figures.confusion(np.array([[3, 1], [0, 4]]), ["dog", "rain"]),
        "heat map": figures.heat_map(rng.random((2, 2)), "ab", "ab", (-1, 1)),
        "distributions": figures.distributions([0, 1, 2], {"1": [0.2, 0.8], "2": [0.5, 0.5]}, "cosine"),
        "bars": figures.bars(
            ["0", "1"], [0.9, 0.4], "codebook", "accuracy", [(0.8, 0.95), (0.3, 0.5)], ("chance", 0.1)
        ),
    }


@pytest.mark.parametrize("name", list(drawn()))
def test_the_same_figure_has_the_same_bytes_and_no_date(name: str) -> None:
    first, second = drawn()[name], drawn()[name]
    assert figures.to_png(first) == figures.to_png(second)
    assert figures.to_svg(first) == figures.to_svg(second)
    assert b"Software" not in figures.to_png(first)
    assert not re.search(r"<dc:date|<metadata", figures.to_svg(first))


@pytest.mark.parametrize("name", list(drawn()))
def test_svg_is_well_formed_takes_the_pages_ink_and_asks_for_nothing_outside(name: str) -> None:
    svg = figures.to_svg(drawn()[name])
    ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))
    assert "currentColor" in svg
    assert figures.INK not in svg
    assert not re.search(r"(href|src)=\"https?:", svg)


def test_confusion_shows_shares_of_each_row() -> None:
    svg = figures.to_svg(figures.confusion(np.array([[3, 1], [0, 4]]), ["dog", "rain"]))
    numbers = re.findall(r">(\d+)</text>", svg)
    assert numbers == ["75", "25", "100"]  # an empty cell stays empty


def test_smoothing_keeps_a_constant_and_narrows_at_the_ends() -> None:
    np.testing.assert_allclose(figures.smooth([2.0] * 7, 3), 2.0)
    np.testing.assert_allclose(figures.smooth([0, 3, 6], 3), [1.5, 3, 4.5])
    with pytest.raises(ValueError, match="smoothing width is 0"):
        figures.smooth([1.0], 0)


def test_drawing_leaves_the_callers_matplotlib_settings_alone() -> None:
    before = dict(mpl.rcParams)
    drawn()
    assert dict(mpl.rcParams) == before
