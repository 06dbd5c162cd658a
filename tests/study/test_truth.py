"""Simulated raters whose preference is known: the results find it, and their intervals hold it as often as they say."""

import re
from pathlib import Path

import numpy as np
import pytest

from siren.study import answers, design, results
from tests.study import builders

WORTH = {"fidelity": {"delay": 6.0, "ours": 3.0, "diffusion": 1.0}, "instruction": {"ours": 8.0, "delay": 1.0}}
WORTH["instruction"]["diffusion"] = 1.0


def ranking(worth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Plackett-Luce: the best is drawn with chances as the worths are, then the next of those that are left. [M]"""
    return np.argsort(np.argsort(-(np.log(worth) + rng.gumbel(size=worth.shape)))) + 1


def test_a_known_preference_comes_out_with_its_order_its_shares_and_its_agreement(tmp_path: Path) -> None:
    study = builders.study(tmp_path, {"general": 40}, seconds=0.4)
    book, rng = answers.Book(tmp_path / "study", study), np.random.default_rng(7)
    for rater in ("anna", "ben", "cleo"):
        for trial, order in study.order(rater):  # the systems as A, B, C of this rater and trial
            given = {q: ranking(np.array([WORTH[q][s] for s in order]), rng).tolist() for q in design.QUESTIONS}
            assert book.keep(rater, trial.id, given, [0.5] * 3, 2.0)
    found = results.results(tmp_path / "study", resamples=500)
    assert (found["raters"], found["complete"], found["answers"]) == (3, 3, 120)
    for question, worth in WORTH.items():
        figures, total = found["sets"]["general"][question], sum(worth.values())
        for system, own in worth.items():
            share = figures["best"][system]
            assert share["low"] <= own / total <= share["high"], (question, system)
        for pair, share in figures["ahead"].items():
            one, other = pair.split(" of ")
            assert share["low"] <= worth[one] / (worth[one] + worth[other]) <= share["high"], pair
    fidelity = found["sets"]["general"]["fidelity"]
    assert sorted(fidelity["rank"], key=lambda s: fidelity["rank"][s]["value"]) == ["delay", "ours", "diffusion"]
    instruction = found["sets"]["general"]["instruction"]["ahead"]
    tie = next(v for k, v in instruction.items() if set(k.split(" of ")) == {"delay", "diffusion"})
    assert tie["low"] < 0.5 < tie["high"]  # equally good: not told apart
    # any two raters draw alike, so their correlation is that of two draws
    draws = np.array([[ranking(np.array([6.0, 3.0, 1.0]), rng) for _ in range(2)] for _ in range(4000)])
    expected = 1 - ((draws[:, 0] - draws[:, 1]) ** 2).sum(-1).mean() / 4
    correlation = fidelity["agreement"]["correlation"]
    assert correlation["low"] <= expected <= correlation["high"]
    assert expected > 0.2
    page = results.write(tmp_path / "study", found)[0].read_text()
    rows = re.findall(r"<td>(delay|ours|diffusion)</td><td>([\d.]+) % \[", page)
    shown = [float(share) for question in design.QUESTIONS for share in _shares(found, question)]
    assert [float(share) for _, share in rows] == pytest.approx(shown, abs=0.05)


def _shares(found: dict, question: str) -> list[float]:
    figures = found["sets"]["general"][question]["best"]
    return [100 * figures[system]["value"] for system in found["systems"]]


@pytest.mark.parametrize(("own_taste", "least", "most"), [(0.0, 0.93, 1.0), (1.0, 0.82, 0.99)])
def test_intervals_hold_the_truth_as_often_as_they_say(own_taste: float, least: float, most: float) -> None:
    """200 studies of 12 raters and 20 prompts. `own_taste`: how far raters differ in what they like, which is what the
    interval has to be wide for; with so few raters it then falls a little short of 95 %, as bootstraps of few do."""
    rng, worth = np.random.default_rng(1), np.array([3.0, 2.0, 1.0])

    def study(raters: int, prompts: int) -> np.ndarray:
        taste = own_taste * rng.normal(size=(raters, 1, 3))
        scores = np.log(worth) + taste + rng.gumbel(size=(raters, prompts, 3))
        return (scores.argmax(-1) == 0)[..., None].astype(float)

    truth = study(20_000, 5).mean()
    held, widths = [], []
    for seed in range(200):
        (share,) = results.mean_over(study(12, 20), 300, seed)
        held.append(share["low"] <= truth <= share["high"])
        widths.append(share["high"] - share["low"])
    assert least <= np.mean(held) <= most
    assert np.mean(widths) < (0.25 if own_taste == 0 else 0.4)  # an interval that holds everything would be no feat
