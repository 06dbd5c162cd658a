"""Charts of the report: each a drawing with a title and a sentence that says what it shows, in numbers."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from siren.evaluate import analyze, figures
from siren.evaluate.goals import number, percent
from siren.evaluate.records import Curve
from siren.filter.audit import TIERS
from siren.filter.select import ALL


def evaluation_figures(metrics: Mapping[str, Any]) -> dict[str, figures.Figure]:
    """What was heard instead of what was prompted, and how often each event came out, for the aligned model."""
    events = metrics["events"].get("aligned", {})
    if not events:
        return {}
    counts, prompted, heard = confusion_counts(events)
    accuracy = [events[name]["accuracy"] for name in prompted]
    spans = [analyze.wilson(events[name]["accuracy"], events[name]["clips"]) for name in prompted]
    return {
        "confusion": figures.confusion(counts, prompted, heard),
        "events": figures.bars(prompted, accuracy, "", "named by the judge", spans, share=True),
    }


def metric_charts(metrics: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """The evaluation's figures with their titles and findings."""
    drawn = evaluation_figures(metrics) if metrics else {}
    if metrics is None or not drawn:
        return []
    events = metrics["events"]["aligned"]
    weakest = sorted(events, key=lambda name: (events[name]["accuracy"], name))[:3]
    low = ", ".join(f"{name} ({percent(events[name]['accuracy'])})" for name in weakest)
    text = "Share of each prompted event's clips, in percent, by what the judge hears in them."
    return [
        _chart("Prompted against heard, aligned model", drawn["confusion"], text),
        _chart("Event by event, aligned model", drawn["events"], f"With 95\u202f% intervals. Weakest: {low}."),
    ]


def confusion_csv(clips: Sequence[Mapping[str, Any]], arm: str = "aligned") -> str:
    """One line for each judged one-event clip of an arm: prompted,heard. For `dvc plots`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["prompted", "heard"])
    for row in clips:
        if row["arm"] == arm and row.get("event_accuracy") is not None:
            writer.writerow([row["labels"][0], row["named"] or "silence"])
    return text.getvalue()


def confusion_counts(events: Mapping[str, Any]) -> tuple[np.ndarray, list[str], list[str]]:
    """The evaluation's table of events as counts, with the names of its rows (prompted) and columns (heard)."""
    prompted = sorted(events)
    others = sorted({name for event in events.values() for name in event["named"]} - set(prompted))
    heard = prompted + others
    counts = np.array([[events[p]["named"].get(h, 0) for h in heard] for p in prompted], float)
    return counts, prompted, heard


def training_charts(curves: Mapping[str, Curve]) -> list[dict[str, str]]:
    charts = []
    stage1 = {name: curve for name, curve in curves.items() if name.startswith("stage1")}
    losses = {f"transformer {name.split('-')[1]}": curve["loss"] for name, curve in stage1.items() if "loss" in curve}
    if losses:
        smoothed = {name: (xs, list(figures.smooth(ys, 5))) for name, (xs, ys) in losses.items()}
        figure = figures.curves(smoothed, "step", "training loss (nats)")
        charts.append(
            _chart("Stage 1, training", figure, "Mean over a transformer's own codebooks, smoothed over 5 points.")
        )
    validation = codebook_losses(stage1.values())
    if validation:
        series = {f"codebook {k}": points for k, points in sorted(validation.items())}
        figure = figures.curves(series, "step", "validation loss (nats)", ordered=True)
        found = analyze.convergence(validation)
        assert found is not None
        text = f"Loss mean {found['mean']:.2f}, loss ratio (last over first codebook) {found['ratio']:.2f}."
        charts.append(_chart("Stage 1, held-out clips", figure, text))
    return charts + _align_charts(curves.get("align", {}))


def _align_charts(align: Curve) -> list[dict[str, str]]:
    charts = []
    if "reward" in align:
        steps, rewards = align["reward"]
        width = max(1, min(5, len(rewards)))
        series = {"each step": (steps, rewards), f"mean of {width}": (steps, list(figures.smooth(rewards, width)))}
        first, last = np.mean(rewards[:width]), np.mean(rewards[-width:])
        text = f"Mean of the first {width} steps {number(float(first))}, of the last {width} {number(float(last))}."
        figure = figures.curves(series, "step", "reward of rollouts")
        charts.append(_chart("Alignment, reward", figure, text))
    if "kl" in align:
        figure = figures.curves({"kl": align["kl"]}, "step", "KL to stage 1 (nats)")
        charts.append(_chart("Alignment, distance from stage 1", figure, "How far the first transformer has moved."))
    return charts


def sweep_charts(sweep: Sequence[Mapping[str, Any]] | None, chosen: float | None) -> list[dict[str, str]]:
    """What thresholds of the CLAP score keep (`siren.filter.select.SWEEP_SCHEMA`), and what the `chosen` one does."""
    if not sweep:
        return []
    whole = [row for row in sweep if row["source"] == ALL]
    # A threshold that keeps everything would only make the axis longer.
    line = None if chosen is None or chosen < whole[0]["tau"] else ("min_score", chosen)
    taus = sorted({*TIERS, *(() if chosen is None else (chosen,))})
    told = ", ".join(f"{_kept(whole, tau)} at {tau:g}" for tau in taus)
    names = list(dict.fromkeys(row["source"] for row in sweep))
    names = names[1:] if len(names) == 2 else names  # one source is all of them
    charts = []
    for column, title in (("pairs", "Pairs kept by threshold"), ("hours", "Hours kept by threshold")):
        series = {
            name: ([row["tau"] for row in own], [row[column] for row in own])
            for name in names
            if (own := [row for row in sweep if row["source"] == name])
        }
        y = f"{column} kept of train"
        ordered = len(series) > len(figures.PALETTE)
        figure = figures.curves(series, "threshold of the CLAP score", y, ordered=ordered, whole=False, line=line)
        text = f"Train pairs with a crop that is good enough: {told}." if column == "pairs" else "Without padding."
        charts.append(_chart(title, figure, text))
    return charts


def _kept(rows: Sequence[Mapping[str, Any]], tau: float) -> str:
    """Pairs and hours at the nearest threshold of the table that is not below; all of them below its range."""
    row = next((row for row in rows if row["tau"] >= tau - 1e-9), None)
    if row is None:
        return "none"
    return f"{row['pairs']:,} pairs ({row['hours']:.3g} h)".replace(",", "\u202f")


def codebook_losses(curves: Any) -> dict[int, tuple[list[int], list[float]]]:
    """Validation curve of each codebook, from the columns `val_loss_codebook_<j>` of stage-1 curves."""
    prefix = "val_loss_codebook_"
    return {
        int(name.removeprefix(prefix)): points
        for curve in curves
        for name, points in curve.items()
        if name.startswith(prefix)
    }


def code_charts(analysis: Mapping[str, Any] | None) -> list[dict[str, str]]:
    if analysis is None:
        return []
    drawn = analyze.draw(analysis)
    texts = analyze.findings(analysis)
    return [_chart(title, drawn[name], texts[name]) for name, title in analyze.TITLES.items() if name in drawn]


def _chart(title: str, figure: figures.Figure, caption: str) -> dict[str, str]:
    return {"title": title, "svg": figures.to_svg(figure), "caption": caption}
