"""The report: one HTML page that a person opens to hear, to see and to judge a run.

Everything is inside the page (sounds, pictures, style, script) and its content policy forbids requests, so it can be
mailed, archived and opened from a file. What it shows was measured elsewhere; this module only arranges it. Prompts
are chosen by their position in the test list, never by how they came out. A part that is missing is named in place
and at the top. The bytes follow from the content: no date, no commit.

Shapes: S samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siren.evaluate import charts, figures, tables
from siren.evaluate.goals import find, goals, percent
from siren.evaluate.players import Prompt, Sounds, kilohertz, players
from siren.evaluate.records import Curve, Missing

PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Report:
    """All that the page shows. Parts that are None or empty are explained in `missing`."""

    scale: str
    sample_rate: int
    prompts: Sequence[Prompt]  # those to listen to, from `players.choose`
    sounds: Sounds
    metrics: Mapping[str, Any] | None  # siren.evaluate.evaluate.Evaluation.metrics
    clips: Sequence[Mapping[str, Any]]  # the same evaluation's rows, one for each arm and prompt
    curves: Mapping[str, Curve]  # "stage1-0" ..., "align"
    funnel: Sequence[tuple[str, int, str]]  # step, how many, note
    quarantine: Sequence[Mapping[str, Any]] | None
    networks: Mapping[str, Mapping[str, Any]]
    analysis: Mapping[str, Any] | None
    lineage: Sequence[tuple[str, str]]
    missing: Sequence[Missing] = ()
    sweep: Sequence[Mapping[str, Any]] | None = None  # what thresholds keep, siren.filter.select.SWEEP_SCHEMA
    min_score: float | None = None  # the threshold of this run
    captioner: Mapping[str, Any] | None = None  # its captions beside people's, where there is one


def render(report: Report) -> str:
    """The page. The same report gives the same text."""
    return fill("page.html", arrange(report))


def fill(template: str, page: Mapping[str, Any], folder: Path = PAGE) -> str:
    """A template of `folder`, which may extend `page/shell.html`, with style and script of `page/`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, PAGE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment.get_template(template).render(page=page, css=style, js=script)


def arrange(report: Report) -> dict[str, Any]:
    """Everything the template shows, as text and drawings."""
    metrics = report.metrics
    headline, summary = _headline(report)
    return {
        "scale": report.scale,
        "headline": headline,
        "summary": summary,
        "goals": goals(metrics) if metrics else [],
        "listen": players(report.prompts, report.sounds, report.clips, report.sample_rate),
        "listen_note": "Each prompt with the real recording that it describes and what the model made of it. "
        "Prompts are taken in turn from the test list, not by how they came out. "
        "Verdicts are the judge's (Cnn14), scores are cosines with the prompt.",
        "levels": [f"{level:.0f}".replace("-", "\u2212") for level in figures.LEVELS],
        "kilohertz": kilohertz(report.sample_rate),
        "metrics": tables.metric_table(metrics) if metrics else None,
        "metrics_note": tables.metrics_note(metrics),
        "training_note": "Losses in nats for each code; a guess among all codes would cost ln V.",
        "charts": {
            "metrics": charts.metric_charts(metrics),
            "training": charts.training_charts(report.curves),
            "codes": charts.code_charts(report.analysis),
            "corpus": charts.sweep_charts(report.sweep, report.min_score),
        },
        "funnel": _funnel(report.funnel),
        "quarantine": report.quarantine,
        "networks": [tables.network_table(name, data) for name, data in report.networks.items()],
        "captioner": tables.captioner_table(report.captioner) if report.captioner else None,
        "lineage": report.lineage,
        "missing": report.missing,
    }


def _headline(report: Report) -> tuple[str, str]:
    about = "Text to audio by isolated transformers over residual codes, aligned by reinforcement learning"
    arms = report.metrics["arms"] if report.metrics else {}
    ours, real = (find(arms.get(arm, {}), "event_accuracy") for arm in ("aligned", "real"))
    if ours is None or report.metrics is None:
        return f"siren at scale {report.scale}", f"{about}."
    events = len(report.metrics["events"].get("aligned", {}))
    ceiling = f"; of the real clips it names {percent(real['value'])}" if real else ""
    chance = f" Chance is {percent(1 / events)}{ceiling}." if events else ""
    title = f"The judge names the prompted event in {percent(ours['value'])} of {ours['count']} clips"
    return title, f"{about}, at scale {report.scale}.{chance}"


def _funnel(steps: Sequence[tuple[str, int, str]]) -> list[dict[str, Any]]:
    most = max((count for _, count, _ in steps), default=1) or 1
    return [
        {
            "name": name,
            "count": f"{count:,}".replace(",", "\u202f"),
            "note": note,
            "percent": f"{70 * count / most:.1f}",
        }
        for name, count, note in steps
    ]
