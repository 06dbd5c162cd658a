"""What the raters said: how often each system was ranked best, its mean rank, and how far the raters agree.

Shares are the paper's (Table 8: ranked best, by prompt set and question). Intervals draw raters and prompts with
replacement, both at once: they speak of other raters and other prompts. Agreement is Kendall's W of each prompt that
two raters or more have ranked, averaged; W is 1 / raters by chance, so the mean Spearman correlation of two raters,
(m W - 1) / (m - 1), stands beside it, which is 0 by chance. Its interval draws prompts only: a rater drawn twice
agrees with himself. Shapes: R raters · P prompts · M systems.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from siren.evaluate import bootstrap
from siren.evaluate.figures import PALETTE, drawing, to_png, to_svg
from siren.evaluate.report import fill
from siren.study.answers import Answer, Book
from siren.study.design import QUESTIONS, Study, load

PAGE = Path(__file__).parent / "page"
EVERY = "all"  # the sets together


def results(folder: Path, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The record of a study, plain nested data. Raises ValueError before the first answer."""
    study = load(folder)
    answers = Book(folder, study).all()
    if not answers:
        raise ValueError(f"nobody has answered {folder} yet")
    raters = sorted({answer.rater for answer in answers})
    sets = list(dict.fromkeys(trial.set for trial in study.trials))
    complete = sum(len([a for a in answers if a.rater == rater]) == len(study.trials) for rater in raters)
    return {
        "systems": list(study.systems),
        "raters": len(raters),
        "complete": complete,
        "trials": len(study.trials),
        "answers": len(answers),
        "median_seconds": float(np.median([answer.took_seconds for answer in answers])),
        "resamples": resamples,
        "seed": seed,
        "sets": {
            name: {
                question: _figures(_ranks(study, answers, raters, name, question), study.systems, resamples, seed)
                for question in QUESTIONS
            }
            for name in ([*sets, EVERY] if len(sets) > 1 else sets)
        },
    }


def _ranks(study: Study, answers: Sequence[Answer], raters: list[str], name: str, question: str) -> np.ndarray:
    """Ranks by rater, prompt and system, NaN where there is no answer. [R, P, M]"""
    prompts = {t.id: i for i, t in enumerate(t for t in study.trials if name in (t.set, EVERY))}
    ranks = np.full((len(raters), len(prompts), len(study.systems)), np.nan)
    for answer in answers:
        if answer.trial in prompts:
            place = [answer.order.index(system) for system in study.systems]
            ranks[raters.index(answer.rater), prompts[answer.trial]] = np.array(answer.ranks[question])[place]
    return ranks


def _figures(ranks: np.ndarray, systems: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    answered = ~np.isnan(ranks[..., 0])
    if not answered.any():
        return {"answers": 0}
    pairs = [(i, j) for i in range(len(systems)) for j in range(i + 1, len(systems))]
    ahead = np.stack([np.where(answered, ranks[..., i] < ranks[..., j], np.nan) for i, j in pairs], -1)
    best = np.where(answered[..., None], ranks == 1, np.nan)
    best_, rank_, ahead_ = (mean_over(v, resamples, seed) for v in (best, ranks, ahead))
    return {
        "answers": int(answered.sum()),
        "best": dict(zip(systems, best_, strict=True)),
        "rank": dict(zip(systems, rank_, strict=True)),
        "ahead": {f"{systems[i]} of {systems[j]}": v for (i, j), v in zip(pairs, ahead_, strict=True)},
        "agreement": agreement(ranks, resamples, seed),
    }


def mean_over(values: np.ndarray, resamples: int, seed: int) -> list[dict[str, float]]:
    """Mean over all answers of each column, with the interval over raters and prompts. [R, P, M], NaN where missing"""
    rng = np.random.default_rng(seed)
    known, filled = ~np.isnan(values[..., 0]), np.nan_to_num(values)
    by_rater, by_prompt = (rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float) for n in known.shape)
    weight = np.einsum("br,bp,rp->b", by_rater, by_prompt, known.astype(float), optimize=True)
    total = np.einsum("br,bp,rpm->bm", by_rater, by_prompt, filled, optimize=True)
    draws = (
        total[weight > 0] / weight[weight > 0, None]
    )  # a draw of raters who answered none of its prompts says nothing
    low, high = np.percentile(draws, [50 * (1 - bootstrap.LEVEL), 100 - 50 * (1 - bootstrap.LEVEL)], axis=0)
    means = filled.sum((0, 1)) / known.sum()
    return [{"value": float(v), "low": float(a), "high": float(b)} for v, a, b in zip(means, low, high, strict=True)]


def kendall_w(ranks: np.ndarray) -> float:
    """Agreement of complete rankings without ties: 1 where all are the same. [R, M] → number"""
    raters, systems = ranks.shape
    spread = np.sum((ranks.sum(0) - raters * (systems + 1) / 2) ** 2)
    return float(12 * spread / (raters**2 * (systems**3 - systems)))


def agreement(ranks: np.ndarray, resamples: int, seed: int) -> dict[str, Any] | None:
    """Kendall's W and the mean correlation of two raters, over prompts with two raters or more; None without such."""
    found = [prompt[~np.isnan(prompt[:, 0])] for prompt in ranks.transpose(1, 0, 2)]
    found = [prompt for prompt in found if len(prompt) > 1]
    if not found:
        return None
    w = np.array([kendall_w(prompt) for prompt in found])
    raters = np.array([len(prompt) for prompt in found])
    rho = bootstrap.mean((raters * w - 1) / (raters - 1), resamples, seed)
    kendall = bootstrap.mean(w, resamples, seed)
    return {
        "kendall_w": {"value": kendall.value, "low": kendall.low, "high": kendall.high},
        "correlation": {"value": rho.value, "low": rho.low, "high": rho.high},
        "prompts": len(found),
        "raters": float(raters.mean()),
    }


def rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The record as text: (set, question, system, ranked best, mean rank, answers)."""
    return [
        (
            name,
            question,
            system,
            interval(found["best"][system], percent=True),
            interval(found["rank"][system]),
            str(found["answers"]),
        )
        for name, questions in record["sets"].items()
        for question, found in questions.items()
        if found["answers"]
        for system in record["systems"]
    ]


def interval(figure: Mapping[str, float], percent: bool = False) -> str:
    value, low, high = (figure[key] * (100 if percent else 1) for key in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]" if percent else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def chart(record: Mapping[str, Any], question: str) -> Any:
    """Shares ranked best by set and system, with intervals; the line is what chance gives."""
    sets = [name for name, questions in record["sets"].items() if questions[question]["answers"]]
    systems = record["systems"]
    with drawing(max(4.7, 1.5 * len(sets)), 2.9) as (figure, axes):
        width = 0.8 / len(systems)
        for i, system in enumerate(systems):
            shares = [record["sets"][name][question]["best"][system] for name in sets]
            x = np.arange(len(sets)) + (i - (len(systems) - 1) / 2) * width
            value, low, high = (np.array([100 * share[key] for share in shares]) for key in ("value", "low", "high"))
            axes.bar(x, value, 0.9 * width, color=PALETTE[i], label=system)
            axes.errorbar(x, value, [value - low, high - value], fmt="none", ecolor="#0a0b0c", elinewidth=1)
        axes.axhline(100 / len(systems), color="#0a0b0c", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xticks(
            range(len(sets)), ["-\n".join(name.rsplit("-", 1)) if len(name) > 14 else name for name in sets]
        )
        axes.set(ylim=(0, 105), ylabel="ranked best (%)")
        axes.legend(ncols=min(3, len(systems)), loc="lower center", bbox_to_anchor=(0.5, 1))
        axes.grid(axis="x", visible=False)
    return figure


def render(record: Mapping[str, Any]) -> str:
    """The record as one self-contained page."""
    charts = {question: to_svg(chart(record, question)) for question in QUESTIONS}
    page = {"record": record, "charts": charts, "questions": QUESTIONS, "interval": interval}
    return fill("results.html", page, PAGE)


def write(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """The page, and its charts as PNGs. The JSON is the caller's."""
    page = folder / "results.html"
    page.write_text(render(record), encoding="utf-8")
    pictures = {folder / f"results-{question}.png": chart(record, question) for question in QUESTIONS}
    for path, figure in pictures.items():
        path.write_bytes(to_png(figure))
    return [page, *pictures]
