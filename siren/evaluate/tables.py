"""Tables of the report: metrics of every arm with their intervals, and what the frozen networks can do.

Figures become text here; every row names the network that made it, its direction and the number of clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from siren.evaluate.goals import find, number, percent

TITLES = {
    "untrained": "Untrained",
    "shuffled": "Shuffled captions",
    "stage1": "Stage 1",
    "aligned": "Aligned",
    "reranked": "Aligned, best of N",
    "codec": "Real through codec",
    "real": "Real",
}
ARROWS = {"higher": "↑", "lower": "↓", "": ""}
GENERATED = ("untrained", "shuffled", "stage1", "aligned")


@dataclass(frozen=True)
class Row:
    """One line of the metric table. `better` is lower, higher, or empty for a plain count."""

    key: str
    name: str
    better: str = ""
    share: bool = False
    goal: str = ""


ROWS = (
    Row("event_accuracy", "Event named (one event)", "higher", True, "≥ 90\u202f%"),
    Row("both_heard", "Both events heard (p ≥ 0.5)", "higher", True, "≥ 40\u202f%"),
    Row("both_top_two", "Both events are the top two", "higher", True),
    Row("order_all", "“Then”: both heard, in order", "higher", True, "reported"),
    Row("order", "“Then”: in order where both heard", "higher", True),
    Row("fd", "FD", "lower", goal="≤ ½ untrained"),
    Row("fd_per_event", "FD within each event", "lower", goal="< shuffled"),
    Row("fad", "FAD", "lower", goal="≤ ½ untrained"),
    Row("fad_per_event", "FAD within each event", "lower", goal="< shuffled"),
    Row("kl", "KL from the real clip", "lower"),
    Row("is", "Inception score", "higher"),
    Row("clap", "CLAP score", "higher"),
    Row("imagebind", "ImageBind score (reward)", "higher", goal="> stage 1"),
    Row("loss_mean", "Loss mean (nats, held out)", "lower"),
    Row("loss_ratio", "Loss ratio (last codebook over first)", "lower"),
    Row("silent_clips", "Silent clips"),
)


def metric_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    arms = [arm for arm in TITLES if arm in metrics["arms"]] + [arm for arm in metrics["arms"] if arm not in TITLES]
    rows = []
    for row in ROWS:
        entries = {arm: _figure(metrics["arms"][arm], row.key) for arm in arms}
        if any(entry is not None for entry in entries.values()):
            shown = {arm: _cell(row, entries[arm]) for arm in arms}
            best = shown.get(_best(row, entries), {}).get("value")  # all that print the same are equally good
            cells = [
                {**cell, "best": cell["value"] == best and arm in GENERATED, "ours": arm == "aligned"}
                for arm, cell in shown.items()
            ]
            rows.append(
                {
                    "name": row.name,
                    "arrow": ARROWS[row.better],
                    "note": _note(row, metrics, arms),
                    "goal": row.goal,
                    "cells": cells,
                }
            )
    return {"columns": [TITLES.get(arm, arm) for arm in arms], "rows": rows}


def summary(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Every arm's and every comparison's values, flat, under names that a tracker takes (no @)."""
    parts = {**metrics["arms"], **metrics["differences"]}
    named = {(part, key): _figure(figures, key) for part, figures in parts.items() for key in figures}
    return {f"{part}/{key.replace('@', '/')}": entry["value"] for (part, key), entry in named.items() if entry}


def _figure(arm: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    entry = arm.get(key, find(arm, key))
    return {"value": entry} if isinstance(entry, (int, float)) else entry


def _best(row: Row, entries: Mapping[str, Mapping[str, Any] | None]) -> str:
    values = {arm: entry["value"] for arm, entry in entries.items() if entry is not None and arm in GENERATED}
    if not row.better or len(set(values.values())) < 2:
        return ""
    return (max if row.better == "higher" else min)(values, key=lambda arm: values[arm])


def _cell(row: Row, entry: Mapping[str, Any] | None) -> dict[str, str]:
    if entry is None:
        return {"value": "\u2013", "interval": ""}
    show = percent if row.share else number
    dash = "\u2013" if entry.get("low", 0) >= 0 else " to "
    interval = f"{show(entry['low'])}{dash}{show(entry['high'])}" if "low" in entry else ""
    if row.share and interval:
        interval = f"{100 * entry['low']:.0f}\u2013{percent(entry['high'])}"
    if "std" in entry and "low" not in entry:
        interval = f"± {number(entry['std'])}"
    return {"value": show(entry["value"]) if row.better else f"{entry['value']:g}", "interval": interval}


def _note(row: Row, metrics: Mapping[str, Any], arms: Sequence[str]) -> str:
    """Network and number of prompts of a row."""
    networks = {key.partition("@")[2] for arm in arms for key in metrics["arms"][arm] if key.split("@")[0] == row.key}
    counts = [e["count"] for arm in arms if (e := _figure(metrics["arms"][arm], row.key)) and "count" in e]
    return " · ".join([*sorted(networks - {""}), *([f"{max(counts)} clips"] if counts else [])])


def metrics_note(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return ""
    notes = "".join(f" {note[0].upper()}{note[1:].rstrip('.')}." for note in metrics["notes"] if note)
    return (
        "↑ higher is better, ↓ lower. Small print is the 95\u202f% interval over test prompts (bootstrap), bold the "
        "best of the generated columns. "
        "A figure belongs to the network that is named under it and compares with no other." + notes
    )


def network_table(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """A network's figures, one column for each group of figures that has them.

    Groups are mappings of the report (panns and vggish, or untrained beside the trained network's own figures);
    numbers counted by codebook ("0", "1", ...) are one row.
    """
    own = {key: _counted(value) for key, value in data.items()}
    groups = {key: value for key, value in own.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in own.items() if key not in groups}
    columns = {**({"held out": plain} if plain else {}), **groups}
    figures = {title: dict(_leaves({k: _counted(v) for k, v in group.items()})) for title, group in columns.items()}
    names = dict.fromkeys(key for group in figures.values() for key in group)
    rows = [{"name": _words(n), "cells": [_value(g.get(n)) for g in figures.values()]} for n in names]
    return {"name": name, "columns": [_words(title) for title in figures], "rows": rows}


CAPTION_ROWS = (
    Row("clap_score", "CLAP score", "higher"),
    Row("cider_d", "CIDEr-D", "higher"),
    Row("bleu_4", "BLEU-4", "higher"),
    Row("rouge_l", "ROUGE-L", "higher"),
    Row("distinct_words", "Distinct words"),
    Row("mean_length", "Words a caption"),
)


def captioner_table(data: Mapping[str, Any], examples: int = 6) -> dict[str, Any] | None:
    """Captions of the last split that has any (test), by people and by the network; None where there are none.

    `data`: what the stage `autocap` reports, split → who wrote them → figures.
    """
    splits = [split for split in data if data[split]]
    if not splits:
        return None
    writers = data[splits[-1]]
    rows = []
    for row in CAPTION_ROWS:
        found = [_figure(figures, row.key) for figures in writers.values()]
        counts = [{"value": _value(each and each["value"]), "interval": ""} for each in found]
        cells = [_cell(row, each) for each in found] if row.better else counts
        rows.append({"name": row.name, "arrow": ARROWS[row.better], "cells": cells})
    said = [figures["examples"][:examples] for figures in writers.values() if "examples" in figures]
    return {
        "split": splits[-1],
        "columns": [name[0].upper() + name[1:] for name in writers],
        "rows": rows,
        "examples": said[-1] if said else [],
    }


def _counted(value: Any) -> Any:
    """{"0": a, "1": b} → [a, b]"""
    is_counted = isinstance(value, Mapping) and value and list(value) == [str(i) for i in range(len(value))]
    return list(value.values()) if is_counted else value


def _leaves(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        found += _leaves(value, f"{prefix}{key} ") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def _words(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, list):
        return ", ".join(number(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}".replace(",", "\u202f") if float(value).is_integer() and value >= 2 else number(value)
