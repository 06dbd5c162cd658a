"""The gate between challenger and champion.

A challenger passes when its bytes are those that were registered, it was not rolled back, the licences it stands on are
allowed, the required metrics are there, and, where there is a champion, it was measured on the same prompts by the same
networks and is not worse than the champion by more than the champion's own interval. A first model passes the same gate
without the comparison. Every move of the alias is noted in a tag `champion.<time>` of the registered model, which is
never overwritten; `rollback` reads there who was champion before.
"""

import getpass
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siren.collect.fetch import licences as names
from siren.tracking import registry, store
from siren.tracking.registry import CHALLENGER, CHAMPION, LICENCES, METRICS, NoVersion, Version

ARMS = ("aligned", "stage1")  # the first that was evaluated is the model that was registered
GATE = {"event_accuracy": +1, "fad": -1}  # +1: more is better. No regression allowed beyond the interval
# Licences of code that weights have as well, as free as any policy asks. The whole text must be one of these names: a
# sentence may go on with "weights: CC BY-NC".
SOFTWARE = re.compile(
    r"(Apache([- ]Licen[sc]e,?)?([- ](Version )?2\.0)?|MIT([- ]Licen[sc]e)?|BSD([- ][0-4]-Clause)?([- ]Licen[sc]e)?"
    r"|ISC([- ]Licen[sc]e)?)",
    re.IGNORECASE,
)
REFERENCE = "reference.prompts"  # tag: a digest of the list of test prompts
HISTORY = "champion."
PROMOTED, ROLLED_BACK = "promoted", "rolled back"  # what a move of the alias was
SHOWN = {**GATE, "fd": -1, "kl": -1, "is": +1, "clap": +1, "both_heard": +1, "order": +1}


@dataclass(frozen=True)
class Check:
    """One line of the comparison; `passed` is None for figures that are shown and do not decide."""

    name: str
    challenger: str
    champion: str
    passed: bool | None
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    challenger: Version
    champion: Version | None
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)


def judge(name: str, uri: str | None = None, licences: Sequence[str] | None = None) -> Verdict:
    """Compare the challenger of `name` with its champion.

    Raises ValueError where there is no challenger, and where the registry does not answer.

    `licences`: those that data and networks may have; by default the ones that the corpus was collected under.
    """
    uri = uri or store.find()
    challenger = registry.version(f"models:/{name}@{CHALLENGER}", uri)
    champion = _champion(name, uri)
    try:
        folder = registry.fetch(challenger)
    except ValueError as error:
        return Verdict(challenger, champion, [Check("sha256", "differs", "", False, str(error))])
    same = Check("sha256", challenger.tags["sha256"][:12], champion.tags["sha256"][:12] if champion else "-", True)
    checks = [same, rollback_check(name, challenger.number, history(name, uri))]
    checks.append(licence_check(folder / LICENCES, licences))
    if champion and REFERENCE in champion.tags:
        checks.append(_reference_check(challenger.tags.get(REFERENCE), champion.tags[REFERENCE]))
    ours = read_metrics(folder / METRICS)
    theirs = read_metrics(registry.fetch(champion) / METRICS) if champion else None
    return Verdict(challenger, champion, [*checks, *compare(ours, theirs)])


def promote(verdict: Verdict) -> None:
    """Move the alias, and leave a trace on both versions. Raises ValueError for a verdict that did not pass."""
    if not verdict.passed:
        failed = "; ".join(f"{c.name}: {c.reason}" for c in verdict.checks if c.passed is False)
        raise ValueError(f"{verdict.challenger.uri} was not promoted: {failed}")
    new, old = verdict.challenger, verdict.champion
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    trace = {
        "promoted.at": now,
        "promoted.by": getpass.getuser(),
        "promoted.over": old.number if old else "none",
        "promoted.gate": json.dumps([vars(check) for check in verdict.checks]),
    }
    for key, value in trace.items():
        new.client.set_model_version_tag(new.name, new.number, key, value)
    _move(new, old.number if old else None, PROMOTED, "")
    if old:
        old.client.set_model_version_tag(old.name, old.number, "retired.at", now)
        old.client.set_model_version_tag(old.name, old.number, "retired.by", new.number)


def history(name: str, uri: str | None = None) -> list[dict[str, Any]]:
    """Every move of the alias champion, oldest first: when, by, what, from, to, why. Raises as `registry.version`."""
    uri = uri or store.find()
    with registry.asking(uri, f"models:/{name}"):
        tags = store.connect(uri).get_registered_model(name).tags
    return [json.loads(value) for key, value in sorted(tags.items()) if key.startswith(HISTORY)]


def rollback(name: str, to: str | None = None, why: str = "", dry_run: bool = False, uri: str | None = None) -> Version:
    """Make version `to` the champion again, by default the one before the present champion; its bytes are checked.

    Returns it. Raises ValueError where there is no champion, none before it, or the bytes do not match.
    """
    uri = uri or store.find()
    champion = registry.version(f"models:/{name}@{CHAMPION}", uri)
    if to is None:
        moves = [move for move in history(name, uri) if move["to"] == champion.number and move["what"] == PROMOTED]
        to = moves[-1]["from"] if moves else champion.tags.get("promoted.over")
        if to in (None, "none"):
            raise ValueError(f"{champion.uri} is the first champion of {name}; name another version with --to")
    if to == champion.number:
        raise ValueError(f"{champion.uri} is the champion already")
    wanted = registry.version(f"models:/{name}/{to}", uri)
    registry.fetch(wanted)
    if not dry_run:
        _move(wanted, champion.number, ROLLED_BACK, why)
    return wanted


def _move(new: Version, old: str | None, what: str, why: str) -> None:
    """The trace first: an alias that moved without one could not be explained."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
    move = {"at": stamp, "by": getpass.getuser(), "what": what, "from": old, "to": new.number, "why": why}
    new.client.set_registered_model_tag(new.name, HISTORY + stamp.replace(":", ""), json.dumps(move))
    new.client.set_registered_model_alias(new.name, CHAMPION, new.number)


def rollback_check(name: str, number: str, moves: Sequence[dict[str, Any]]) -> Check:
    """Whether the last move of the alias that this version had a part in is not the rollback that took it away.

    A rollback moves the champion and leaves the challenger, which would pass again with the figures it passed with.
    """
    last = next((move for move in reversed(moves) if number in (move["from"], move["to"])), None)
    if last is None or (last["what"], last["from"]) != (ROLLED_BACK, number):
        return Check("rolled back", "no", "", True)
    why = f": {last['why']}" if last["why"] else ""
    reason = (
        f"version {number} was rolled back to {last['to']} on {last['at'][:10]} by {last['by']}{why}; register "
        f"another, or take it back on purpose: siren rollback --model {name} --to {number}"
    )
    return Check("rolled back", last["at"][:10], "", False, reason)


def licence_check(path: Path, allowed: Sequence[str] | None) -> Check:
    """Whether every licence that a version lists is one of those `allowed`, or else of its own policy; none: any is."""
    if not path.is_file():
        return Check("licences", "-", "", False, "not recorded with this version; register it anew")
    listed = json.loads(path.read_text())
    policy = allowed or listed.get("policy")
    data = {str(row["licence"]) for row in listed.get("data", [])}
    networks = {f"{name}: {licence}": licence for name, licence in listed.get("networks", {}).items()}
    shown = ", ".join(sorted(data)) or "no data"
    if not policy:
        return Check("licences", shown, "", None, "no policy (collect.licences is null): all are allowed")
    wrong = sorted(licence for licence in data if not names.allowed(licence, policy))
    wrong += [n for n, given in networks.items() if not (SOFTWARE.fullmatch(given) or names.allowed(given, policy))]
    reason = f"not among {', '.join(policy)}: {'; '.join(wrong)}" if wrong else ""
    return Check("licences", shown, "", not wrong, reason)


def _reference_check(ours: str | None, theirs: str) -> Check:
    reason = "" if ours == theirs else "evaluated on another list of prompts than the champion; use the same list"
    return Check("reference", (ours or "-")[:12], theirs[:12], ours == theirs, reason)


def read_metrics(path: Path) -> dict[str, Any]:
    """The figures of the registered model out of `reports/metrics.json`: name → value, low, high, key, and prompts."""
    report = json.loads(path.read_text())
    arms: dict[str, dict[str, Any]] = report.get("arms", {})
    arm: dict[str, Any] = next((arms[name] for name in ARMS if name in arms), {})
    figures = {key.split("@")[0]: {**entry, "key": key} for key, entry in arm.items() if isinstance(entry, dict)}
    return {"figures": figures, "prompts": report.get("prompts", {})}


def compare(ours: dict[str, Any], theirs: dict[str, Any] | None) -> list[Check]:
    """The checks on metrics: required ones are there, and against a champion the same prompts and no regression."""
    checks = []
    if theirs is not None:
        same = ours["prompts"] == theirs["prompts"]
        reason = "" if same else "evaluated on other prompts than the champion; evaluate both on the same list"
        checks.append(Check("prompts", _count(ours), _count(theirs), same, reason))
    for name, sign in SHOWN.items():
        mine, yours = ours["figures"].get(name), (theirs or {"figures": {}})["figures"].get(name)
        required = name in GATE and not (name == "event_accuracy" and not ours["prompts"].get("one_event"))
        if required:
            reason = _fault(sign, mine, yours)
            checks.append(Check(name, _figure(mine), _figure(yours), not reason, reason))
        elif mine or yours:
            checks.append(Check(name, _figure(mine), _figure(yours), None))
    return checks


def _fault(sign: int, mine: dict[str, Any] | None, yours: dict[str, Any] | None) -> str:
    """Why a required figure does not pass; '' if it does."""
    if mine is None or not math.isfinite(mine["value"]):
        return "required, and missing or not a number among the challenger's metrics"
    if yours is None:
        return ""
    if mine["key"] != yours["key"]:
        return f"measured by another network ({mine['key']} against {yours['key']}), so not comparable"
    bound = yours["low"] if sign > 0 else yours["high"]
    if sign * (mine["value"] - bound) < 0:
        return f"{mine['value']:.4g} is worse than {bound:.4g}, the end of the champion's interval"
    return ""


def _champion(name: str, uri: str) -> Version | None:
    try:
        return registry.version(f"models:/{name}@{CHAMPION}", uri)
    except NoVersion:  # and nothing else: a registry that does not answer may well have one
        return None


def _figure(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    interval = f" [{entry['low']:.4g}, {entry['high']:.4g}]" if "low" in entry else ""
    return f"{entry['value']:.4g}{interval}"


def _count(metrics: dict[str, Any]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in metrics["prompts"].items() if count)
