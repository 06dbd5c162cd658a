"""The paper beside this run: its tables and figures in its layout, each figure of ours next to the printed one.

Nothing is measured here. What is printed is in `paper.yaml`; what is ours is found in the records of `siren evaluate`,
`siren claims`, `siren analyze`, `siren measure` and `siren paper --run`. What has not been run says so, with the
command that would. Values of different scales, corpora and judging networks stand side by side and must not be
compared: what may be compared is the order of rows, and that is what claims and their verdicts are about.

Verdicts of arms are those of `siren.evaluate.claims`. Properties of codes are verdicts on one codec: nearly orthogonal
means a mean within `MIDDLE` of a right angle's and most values within `analyze.NEAR`; a codebook tells less of the
event than another where their intervals are apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from siren.evaluate import alignment, analyze, best_of, claims, figures, inside, report
from siren.evaluate.claims import FAILS, HOLDS, OPEN
from siren.evaluate.goals import find, number, percent
from siren.evaluate.players import Prompt, Sounds, kilohertz, players
from siren.model import arms

PRINTED = Path(__file__).parent / "paper.yaml"
NOT_RUN = "not run"
MIDDLE, MOST = 0.1, 0.5  # of cosines: how far from 0 their mean may be, and how many must be near 0
PLAYED = ("real", "stage1", "aligned", "reranked")
ARMS_PLAYED = {  # record → heading, and how its arms are called
    "claims": (
        "Arms of Tables 1 and 3 to 6",
        {
            "real": "Real",
            "siren": "Siren, stage 1",
            "single": "Single transformer",
            "delay": "Delay pattern",
            "independent": "Independent heads",
            "single-small": "Single, 1/3 of the size",
            "ar": "Single, code below",
            "previous": "Isolated, code below",
            "isolated": "Isolated, no codes",
            **{f"m{count}": f"{count} transformers" for count in (2, 3, 4, 6, 12)},
        },
    ),
    "alignment": (
        "Ways of aligning, Table 7 and Figure 5",
        {
            "real": "Real",
            "stage1": "Stage 1, not aligned",
            "anti-causal": "Anti-causal",
            "anti-causal-2": "Anti-causal, two",
            "causal": "Causal",
            "dpo": "DPO",
        },
    ),
}
COLUMNS = {  # of the tables: title, and how our value is shown
    "parameters": ("parameters", lambda value: f"{value / 1e6:.1f}M" if value else "none"),
    "batch": ("time", lambda value: f"{value:.2f} s"),
    "fad": ("FAD ↓", number),
    "fd": ("FD ↓", number),
    "is": ("IS ↑", number),
    "kl": ("KL ↓", number),
    "clap": ("CLAP ↑", lambda value: number(100 * value)),  # the paper's scale
    "loss_mean": ("loss mean ↓", number),
    "loss_ratio": ("loss ratio ↓", number),
}
SIGNS = {HOLDS: True, FAILS: False, OPEN: None, NOT_RUN: None}
COMMANDS = {
    "run": "dvc repro evaluate",
    "arms": "siren claims",
    "alignment": "siren claims --alignment",
    "analysis": "dvc repro analyze",
    "inside": "siren paper --run",
    "best_of": "siren paper --run",
}


@dataclass(frozen=True)
class Found:
    """What has been run; None where a record is missing."""

    scale: str
    sample_rate: int = 16000
    metrics: Mapping[str, Any] | None = None  # reports/metrics.json
    claims: Mapping[str, Any] | None = None  # reports/claims.json
    alignment: Mapping[str, Any] | None = None  # reports/alignment.json
    analysis: Mapping[str, Any] | None = None  # reports/analysis/analysis.json
    inside: Mapping[str, Any] | None = None  # reports/inside.json
    best_of: Mapping[str, Any] | None = None  # reports/best_of.json
    systems: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # records of `siren measure`, by name
    prompts: Sequence[Prompt] = ()
    sounds: Sounds = field(default_factory=dict)
    arms: Mapping[str, tuple[Sequence[Prompt], Sounds]] = field(default_factory=dict)  # by record: clips of its arms
    num_codebooks: int | None = None


def printed() -> list[dict[str, Any]]:
    """The paper's tables, as `paper.yaml` has them."""
    return list(yaml.safe_load(PRINTED.read_text(encoding="utf-8")))


def render(found: Found) -> str:
    """The page. The same records give the same text."""
    return report.fill("paper.html", arrange(found))


def arrange(found: Found) -> dict[str, Any]:
    """Everything that the template shows, as text and drawings."""
    said = verdicts(found)
    counts = [(verdict, sum(claim["verdict"] == verdict for claim in said)) for verdict in SIGNS]
    return {
        "scale": found.scale,
        "claims": said,
        "counts": [(verdict, count) for verdict, count in counts if count],
        "tables": [_table(found, table) for table in printed()],
        "figures": _figures(found),
        "best_of": _best_of(found),
        "listen": players(found.prompts, found.sounds, None, found.sample_rate, _played(found)),
        "arms": _arms_played(found),
        "kilohertz": kilohertz(found.sample_rate),
        "levels": [f"{level:.0f}".replace("-", "\u2212") for level in figures.LEVELS],
        "about": _about(found),
    }


def _played(found: Found) -> list[str]:
    return [arm for arm in PLAYED if arm in found.sounds]


def _arms_played(found: Found) -> list[dict[str, Any]]:
    """For each record that has clips its heading, the prompts with a cell for every arm, and the command for more."""
    shown = []
    for name, (heading, titles) in ARMS_PLAYED.items():
        prompts, sounds = found.arms.get(name, ((), {}))
        made = (getattr(found, name) or {"arms": {}})["arms"]
        fds = {arm: find(own, "fd") for arm, own in made.items()}
        said = {arm: f"FD {number(fd['value'])}" for arm, fd in fds.items() if fd}
        groups = players(prompts, sounds, None, found.sample_rate, [a for a in titles if a in sounds], titles, said)
        rows = [row for group in groups for row in group["rows"]]
        shown.append({"title": heading, "rows": rows, "command": COMMANDS["arms" if name == "claims" else name]})
    return shown


def _about(found: Found) -> list[tuple[str, str]]:
    """What stands behind the figures of this page."""
    rows = []
    for name, record in (("arms", found.claims), ("alignment", found.alignment)):
        if record:
            text = ", ".join(f"{key} {value}" for key, value in record["about"].items())
            seeds = max((len(arm["seeds"]) for arm in record["arms"].values()), default=0)
            rows.append((name, f"{text}; {seeds} seed{'s' * (seeds > 1)}"))
    if found.metrics:
        networks = ", ".join(found.metrics["networks"].values())
        rows.append(("run", f"networks {networks}; {found.metrics['prompts']['all']} prompts"))
    if found.best_of:
        rows.append(("best of N", f"seconds on {found.best_of['device']}"))
    rows += [
        (f"system {name}", f"N {record['prompts']}, list {record['list_sha256'][:12]}")
        for name, record in found.systems.items()
    ]
    return rows


# ---- verdicts


def verdicts(found: Found) -> list[dict[str, Any]]:
    """Every claim of the paper that this project knows: where it stands there, its text, verdict, why, and `state`."""
    claimed = claims.CLAIMS if found.num_codebooks is None else claims.tried(found.num_codebooks)
    said = [
        *_properties(found),
        *(_judged(claim, found.claims, "arms") for claim in claimed),
        *(_judged(claim, found.alignment, "alignment") for claim in alignment.CLAIMS),
    ]
    return sorted(({**one, "state": SIGNS[one["verdict"]]} for one in said), key=lambda one: _place(one["where"]))


def _place(where: str) -> tuple[bool, str]:
    return where.startswith("Figure"), where


def _judged(claim: claims.Claim, record: Mapping[str, Any] | None, source: str) -> dict[str, Any]:
    where = claim.table.replace("Fig.", "Figure") if claim.table.startswith("Fig") else f"Table {claim.table}"
    one = {"where": where, "claim": claim.text}
    entry = None
    if record is not None:  # verdicts over prompts are in the record only: its rows are without prompts
        entry = next((c for c in record["claims"] if (c["table"], c["claim"]) == (claim.table, claim.text)), None)
        entry = entry or claims.judge(claim, record["results"])
    if entry is None:
        arms_needed = dict.fromkeys(arm for pair in claim.pairs for arm in pair)
        there = record["arms"] if record else {}
        lacking = " ".join(f"--arm {arm}" for arm in arms_needed if arm not in there)
        return one | {"verdict": NOT_RUN, "why": "", "command": f"{COMMANDS[source]} {lacking}".strip()}
    first = entry["by"][0]
    why = "; ".join(f"{p['better']} − {p['worse']}: {_difference(p, first['measure'])}" for p in first["pairs"])
    return one | {"verdict": entry["verdict"], "why": f"{claims.MEASURES[first['measure']][1]}: {why}", "command": ""}


def _difference(pair: Mapping[str, Any], measure: str) -> str:
    def show(value: float) -> str:
        text = claims.MEASURES[measure][2](abs(value))
        return f"{'−' if value < 0 else '+'}{text}"

    if pair["low"] is None or pair["high"] is None or not np.isfinite([pair["low"], pair["high"]]).all():
        return f"{show(pair['difference'])}, one seed"
    return f"{show(pair['difference'])} [{show(pair['low'])}, {show(pair['high'])}]"


def _properties(found: Found) -> list[dict[str, Any]]:
    """What the paper says of codes, gradients and weights."""
    records = {"analysis": found.analysis, "inside": found.inside, "arms": found.claims}
    commands = COMMANDS | {"arms": f"{COMMANDS['arms']} --arm independent"}
    said = []
    for where, claim, source, judge in (
        ("Figure 2a", "features of two codebooks of one frame are nearly orthogonal", "analysis", _per_frame),
        ("Figure 8", "their averages over time are nearly orthogonal too", "analysis", _pooled),
        ("Figure 2b", "heads pull a shared transformer in nearly orthogonal directions", "inside", _gradients),
        ("Figure 2c, 9", "the last codebook says less of the event than the first", "analysis", _probe),
        ("Figure 2d, 6", "independent heads learn the last codebook less well than the first", "arms", _imbalance),
        ("Figure 7", "task vectors are least alike in the RVQ decoder, most in the embedding", "inside", _task_vectors),
    ):
        record = records[source]
        verdict, why = (record and judge(record)) or (NOT_RUN, "")
        command = commands[source] if verdict == NOT_RUN else ""
        said.append({"where": where, "claim": claim, "verdict": verdict, "why": why, "command": command})
    return said


def _per_frame(analysis: Mapping[str, Any]) -> tuple[str, str]:
    return _cosines(analysis, "per_frame")


def _pooled(analysis: Mapping[str, Any]) -> tuple[str, str]:
    return _cosines(analysis, "pooled")


def _cosines(analysis: Mapping[str, Any], kind: str) -> tuple[str, str]:
    row = analysis["cosine"][kind]["all"]
    holds = abs(row["mean"]) <= MIDDLE and row["near_orthogonal"] >= MOST
    why = f"mean cosine {row['mean']:+.2f}, {percent(row['near_orthogonal'])} within ±{analyze.NEAR}"
    return (HOLDS if holds else FAILS), why.replace("-", "−")


def _gradients(found: Mapping[str, Any]) -> tuple[str, str]:
    row = found["gradients"]["independent"]["averaged"]["all"]
    bound = float(np.degrees(np.arcsin(MIDDLE)))
    holds = abs(row["mean"] - 90) <= bound and row["near_orthogonal"] >= MOST
    why = f"mean {row['mean']:.0f}°, {percent(row['near_orthogonal'])} within {inside.NEAR:.0f}° of a right angle"
    return (HOLDS if holds else FAILS), why


def _probe(analysis: Mapping[str, Any]) -> tuple[str, str]:
    if analysis["probe"] is None:
        return NOT_RUN, "too few clips with one event each"
    probed = analysis["probe"].get("two_layers", analysis["probe"])
    (first, last), spans = (probed["accuracy"][i] for i in (0, -1)), probed["interval"]
    verdict = HOLDS if spans[0][0] > spans[-1][1] else FAILS if spans[-1][0] > spans[0][1] else OPEN
    why = f"top-1 {percent(first)} and {percent(last)}; rank correlation with depth {probed['trend']:+.2f}"
    return verdict, why.replace(" -", " −")


def _imbalance(record: Mapping[str, Any]) -> tuple[str, str] | None:
    ratios = [row["loss_ratio"] for row in record["results"] if row["arm"] == "independent"]
    if not ratios:
        return None
    ratio = claims.over_seeds(ratios)
    verdict = HOLDS if ratio.low > 1 else FAILS if ratio.high < 1 else OPEN
    span = f" [{ratio.low:.3f}, {ratio.high:.3f}]" if len(ratios) > 1 else ", one seed"
    return verdict, f"loss of the last codebook over that of the first {ratio.value:.3f}{span}"


def _task_vectors(found: Mapping[str, Any]) -> tuple[str, str]:
    groups = found["task_vectors"]["layers"]
    means = {group: [float(np.mean(layer)) for layer in layers.values()] for group, layers in groups.items()}
    spans = {group: (min(values), float(np.mean(values)), max(values)) for group, values in means.items()}
    least, most, middle = spans["RVQ decoder"], spans["Embedding"], [spans[g] for g in ("Backbone", "Classifier")]
    ordered = all(least[1] < m[1] < most[1] for m in middle)
    apart = all(least[2] < m[0] and m[2] < most[0] for m in middle)
    why = ", ".join(f"{group} {span[1]:+.3f}" for group, span in spans.items()).replace("-", "−")
    return (HOLDS if apart else OPEN if ordered else FAILS), f"mean cosine over layers: {why}"


# ---- tables


def _table(found: Found, table: Mapping[str, Any]) -> dict[str, Any]:
    facts = [name for name in ("parameters", "batch") if any(name in row for row in table["rows"])]
    columns = [*table["measures"], *facts]
    rows, commands = [], []
    for row in table["rows"]:
        own = _own(found, row)
        entries = [_entry(own, name) for name in columns]
        if own["command"] or (own["figures"] and None in entries and own["again"]):
            commands.append(own["command"] or own["again"])
        cells = []
        for name, entry in zip(columns, entries, strict=True):
            there = str(row.get(name, row.get("mark", "–") if name in table["measures"] else "–"))
            cells.append({"paper": there if name in facts else _as_printed(there), **_shown(name, entry)})
        rows.append({"name": row["name"], "note": own["note"], "cells": cells})
    return {
        "number": table["table"],
        "title": table["title"],
        "note": table.get("note", ""),
        "columns": [COLUMNS[name][0] for name in columns],
        "rows": rows,
        "commands": list(dict.fromkeys(commands)),
    }


def _as_printed(text: str) -> str:
    return f"{float(text):.2f}" if text.replace(".", "", 1).isdigit() else text


def _own(found: Found, row: Mapping[str, Any]) -> dict[str, Any]:
    """What there is for a row: its figures by measure, a note under its name, the command for what is missing."""
    nothing: dict[str, Any] = {"figures": {}, "note": "", "command": "", "again": ""}
    if "scale" in row:
        return nothing | {"note": f"only at scale {row['scale']}"}
    if "system" in row:
        record, name = found.systems.get(row["system"]), row["system"]
        if record is None:
            return nothing | {
                "note": NOT_RUN,
                "command": f"siren measure SOUNDS REAL LIST --out reports/systems/{name}.json",
            }
        return nothing | {"figures": record["figures"], "note": f"{record['prompts']} clips"}
    source, _, arm = row["ours"].partition("/")
    if source == "run":
        figures_of = (found.metrics or {"arms": {}})["arms"].get(arm)
        if figures_of is None:
            return nothing | {"note": NOT_RUN, "command": COMMANDS["run"]}
        said = {"reranked": "best of N by CLAP", "aligned": "single samples", "stage1": "single samples"}[arm]
        return nothing | {"figures": figures_of, "note": f"the run, {said}"}
    record = found.claims if source == "arms" else found.alignment
    if source == "arms" and found.num_codebooks is not None:
        arm = f"m{found.num_codebooks}" if arm == "one-code" else arm
        if arm not in arms.ARMS or not arms.fits(arm, found.num_codebooks):
            return nothing | {"note": f"{found.num_codebooks} codebooks cannot be shared out so"}
    made = (record or {"arms": {}})["arms"].get(arm)
    command = f"{COMMANDS[source]} --arm {arm}"
    if made is None:
        return nothing | {"note": f"arm {arm}: {NOT_RUN}", "command": command}
    seeds = len(made["seeds"])
    note = f"{'arm' if source == 'arms' else 'alignment'} {arm}, {seeds} seed{'s' * (seeds > 1)}"
    return nothing | {"figures": made, "note": note, "again": COMMANDS[source]}


def _entry(own: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    key = "sample_seconds" if name == "batch" else name
    value = find(own["figures"], key)
    return {"value": value} if isinstance(value, (int, float)) else value


def _shown(name: str, entry: Mapping[str, Any] | None) -> dict[str, str]:
    if entry is None:
        return {"ours": "–", "interval": ""}
    show = COLUMNS[name][1]
    low, high = entry.get("low"), entry.get("high")
    interval = "" if low is None or high is None else f"{show(low)}{'–' if low >= 0 else ' to '}{show(high)}"
    if name == "batch":
        interval = "a clip"
    return {"ours": show(entry["value"]), "interval": interval}


# ---- figures


def _figures(found: Found) -> list[dict[str, Any]]:
    """The paper's figures in their order; charts of ours, or what would make them."""
    codes, codes_said = (analyze.draw(found.analysis), analyze.findings(found.analysis)) if found.analysis else ({}, {})
    within, within_said = (inside.draw(found.inside), inside.findings(found.inside)) if found.inside else ({}, {})

    def of_codes(*names: str) -> list[dict[str, str]]:
        return [_chart(analyze.TITLES[n], codes[n], codes_said[n]) for n in names if n in codes]

    def learned() -> list[dict[str, str]]:
        return [chart | {"title": f"{chart['title']}: Siren, the run"} for chart in of_codes("convergence")]

    def of_inside(*names: str) -> list[dict[str, str]]:
        return [_chart(inside.TITLES[n], within[n], within_said[n]) for n in names if n in within]

    listed = [
        ("2a, 8", "Cosines between codebooks", of_codes(*(n for n in analyze.TITLES if "cosine" in n)), "analysis"),
        ("2b", "Angles between the gradients of heads", of_inside("gradients", "gradients_whole"), "inside"),
        ("2c, 9", "What codebooks say of the event", of_codes("tsne", "probe"), "analysis"),
        ("2d, 6", "Convergence, codebook by codebook", [*of_inside("losses"), *learned()], "inside"),
        ("5", "Reward while aligning", _rewards(found), "alignment"),
        ("7", "Task vectors", of_inside("task_vectors"), "inside"),
    ]
    return [
        {"number": number, "title": title, "charts": made, "command": "" if made else COMMANDS[source]}
        for number, title, made, source in listed
    ]


def _rewards(found: Found) -> list[dict[str, str]]:
    """Mean reward of the rollouts over seeds, for each way of aligning (Fig. 5)."""
    rows = [row for row in (found.alignment or {}).get("results", []) if "reward" in row]
    if not rows:
        return []
    series, said = {}, []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row["reward"] for row in rows if row["arm"] == arm]
        least = min(len(values) for _, values in own)
        means = np.mean([values[:least] for _, values in own], axis=0)
        series[arm] = (own[0][0][:least], list(figures.smooth(means, 5)))
        made = (found.alignment or {})["arms"][arm]
        pair = [COLUMNS[name][1](made[name]["value"]) for name in ("fd", "clap") if name in made]
        said.append(f"{arm} ({', '.join(pair)})" if pair else arm)
    text = "Rollouts' ImageBind cosine, mean over seeds, smoothed over 5 steps. In brackets FD and CLAP: "
    text += f"{'; '.join(said)}."
    return [_chart("Reward of the rollouts", figures.curves(series, "step", "reward"), text)]


def _best_of(found: Found) -> dict[str, Any]:
    if found.best_of is None:
        return {"charts": [], "command": COMMANDS["best_of"]}
    drawn, curves = best_of.draw(found.best_of), found.best_of["curves"]
    most, seconds = len(curves[best_of.RANKER]), found.best_of["seconds"]
    each = sum(seconds.values())
    gains = "; ".join(
        f"{best_of.NAMES[name]} {_span(points[0])} to {_span(points[-1])}" for name, points in curves.items()
    )
    texts = {
        "best_of": f"From one clip to the best of {most}: {gains}. Bands are 95 % intervals over prompts. The curve of "
        "the network that chooses shows the choice, not quality.",
        "cost": f"{each:.3f} s for each clip made ({seconds['rank']:.4f} s of it for ranking), so {most * each:.2f} s "
        f"for the best of {most}, on {found.best_of['device']}.",
    }
    titles = {"best_of": "What the choice gains", "cost": "What it costs"}
    return {"charts": [_chart(titles[name], drawn[name], texts[name]) for name in drawn], "command": ""}


def _span(point: Mapping[str, float]) -> str:
    return f"{point['value']:.3f} [{point['low']:.3f}, {point['high']:.3f}]"


def _chart(title: str, figure: figures.Figure, caption: str) -> dict[str, str]:
    return {"title": title, "svg": figures.to_svg(figure), "caption": caption.replace("-0.", "−0.")}
