"""What a run had to reach, as claims checked against its metrics; and where in the metrics a figure stands.

The goals are those of the demo, fixed before it was first run. A claim holds, does not hold, or stays open where the
metrics do not have what it needs; it is never adapted to what came out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIN_ACCURACY, MIN_ONE_EVENT = 0.90, 144  # share of one-event prompts named, and of how many at least
MIN_BOTH, MIN_TWO_EVENTS = 0.40, 48  # share of two-event prompts with both events heard
MAX_DISTANCE_RATIO = 0.5  # FD and FAD against the untrained model


@dataclass(frozen=True)
class Goal:
    claim: str
    value: str  # what was measured, for people
    needed: str
    held: bool | None  # None: reported without a threshold, or not measured


def find(figures: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The entry `name` or `name@network` of one arm or one comparison; None where there is none."""
    return next((entry for key, entry in figures.items() if key.split("@")[0] == name), None)


def percent(share: float) -> str:
    return f"{100 * share:.0f}\u202f%"


def number(value: float) -> str:
    """Three digits, as many of them behind the point as fit; an exponent only from a million on."""
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f").replace("-", "\u2212")
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{decimals}f}".replace("-", "\u2212")


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\u2212")


def goals(metrics: Mapping[str, Any]) -> list[Goal]:
    """Every goal with its verdict, for the aligned model."""
    return [
        _share(
            metrics, "event_accuracy", "of one-event prompts: the judge names the event", MIN_ACCURACY, MIN_ONE_EVENT
        ),
        _share(metrics, "both_heard", "of two-event prompts: the judge hears both events", MIN_BOTH, MIN_TWO_EVENTS),
        _order(metrics),
        _ratio(metrics, "fad", "FAD"),
        _ratio(metrics, "fd", "FD"),
        _below_shuffled(metrics, "fad_per_event", "FAD within each event"),
        _below_shuffled(metrics, "fd_per_event", "FD within each event"),
        _reward(metrics),
        _not_lower(metrics),
    ]


def _entry(metrics: Mapping[str, Any], arm: str, name: str) -> Mapping[str, Any] | None:
    return find(metrics["arms"].get(arm, {}), name)


def _open(claim: str, needed: str) -> Goal:
    return Goal(claim, "not measured", needed, None)


def _share(metrics: Mapping[str, Any], name: str, claim: str, least: float, count: int) -> Goal:
    needed = f"goal: {percent(least)} of at least {count}"
    entry = _entry(metrics, "aligned", name)
    if entry is None:
        return _open(claim, needed)
    span = f"{100 * entry['low']:.0f}\u2013{percent(entry['high'])} on {entry['count']} prompts"
    held = entry["value"] >= least and entry["count"] >= count
    return Goal(claim, percent(entry["value"]), f"{needed}; interval {span}", held)


def _order(metrics: Mapping[str, Any]) -> Goal:
    claim, needed = "of “A then B” prompts: both heard and in order", "reported, no threshold"
    entry = _entry(metrics, "aligned", "order_all")
    if entry is None:
        return _open(claim, needed)
    among = _entry(metrics, "aligned", "order")
    note = f"; in order among those with both heard: {percent(among['value'])} of {among['count']}" if among else ""
    return Goal(claim, percent(entry["value"]), f"{needed}; {entry['count']} prompts{note}", None)


def _ratio(metrics: Mapping[str, Any], name: str, title: str) -> Goal:
    claim, needed = f"{title}, as a share of the untrained model's", f"goal: at most {percent(MAX_DISTANCE_RATIO)}"
    ours, base = _entry(metrics, "aligned", name), _entry(metrics, "untrained", name)
    if ours is None or base is None or base["value"] == 0:
        return _open(claim, needed)
    ratio = ours["value"] / base["value"]
    note = f"{needed}; {number(ours['value'])} against {number(base['value'])}"
    return Goal(claim, percent(ratio), note, ratio <= MAX_DISTANCE_RATIO)


def _below_shuffled(metrics: Mapping[str, Any], name: str, title: str) -> Goal:
    claim, needed = f"{title}, against shuffled captions", "goal: lower"
    ours, control = _entry(metrics, "aligned", name), _entry(metrics, "shuffled", name)
    if ours is None or control is None:
        return _open(claim, needed)
    value = f"{number(ours['value'])} : {number(control['value'])}"
    return Goal(claim, value, needed, ours["value"] < control["value"])


def _reward(metrics: Mapping[str, Any]) -> Goal:
    claim, needed = "reward gained by alignment over stage 1", "goal: above zero, with an interval that excludes it"
    entry = find(metrics["differences"].get("aligned-stage1", {}), "imagebind")
    if entry is None:
        return _open(claim, needed)
    span = f"interval {signed(entry['low'])} to {signed(entry['high'])}, {entry['count']} prompts"
    return Goal(claim, signed(entry["value"]), f"{needed}; {span}", entry["low"] > 0)


def _not_lower(metrics: Mapping[str, Any]) -> Goal:
    claim, needed = "accuracy gained by alignment over stage 1", "goal: not lower"
    entry = find(metrics["differences"].get("aligned-stage1", {}), "event_accuracy")
    if entry is None:
        return _open(claim, needed)
    points = f"{100 * entry['value']:+.1f} points".replace("-", "\u2212")
    return Goal(claim, points, f"{needed}; {entry['count']} prompts", entry["value"] >= 0)
