"""The model card: what a version is, how good, from which data under which licences, and what it cannot do."""

from collections.abc import Mapping, Sequence
from typing import Any

ARMS = ("untrained", "stage1", "aligned", "real")
LIMITS = """\
- Events, rhythms and their order are learned from the corpus below; prompts far from it give sound, but not that sound.
- The figures come from the networks named in their keys. At scale `demo` those networks, the corpus and the prompts
  share one synthetic generator, so the figures say nothing about real sound.
- The reward of the alignment and the conditioning text encoder were trained on the same corpus as the model.
- The interval of a figure is about the choice of test prompts only: one model, one sampling seed."""


def write(
    name: str,
    scale: str,
    metrics: Mapping[str, Any],
    data: Sequence[Mapping[str, Any]],
    networks: Mapping[str, str],
    tags: Mapping[str, str],
) -> str:
    """Markdown. `data` rows: source, licence, clips. `networks`: name → licence. `tags`: the run's lineage."""
    dirty = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
    parts = [
        f"# {name} ({scale})",
        "A text-to-audio language model: isolated transformers over residual codes, the first of them aligned to the "
        "others by reinforcement learning (arXiv 2510.04577).",
        "## Use",
        f'    siren generate "a dog barks while rain falls" --model models:/{name}@champion --out sounds --seed 0',
        "## Figures",
        figures(metrics),
        "## Data",
        _table(("source", "licence", "clips"), [(r["source"], r["licence"], r["clips"]) for r in data]),
        "## Parts",
        _table(("network", "licence"), sorted(networks.items())),
        "## Where it comes from",
        f"Commit `{tags.get('git.commit', 'none')}`{dirty}; dvc.lock sha256 `{tags.get('dvc.lock', 'none')}`; the "
        "hashes of all data are tags of the version.",
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def figures(metrics: Mapping[str, Any]) -> str:
    """A table of `reports/metrics.json`: each metric in each arm, with its interval."""
    arms = {arm: metrics.get("arms", {}).get(arm, {}) for arm in ARMS}
    keys = dict.fromkeys(key for entries in arms.values() for key, e in entries.items() if isinstance(e, Mapping))
    if not keys:
        return "None: this version has not been evaluated."
    rows = [(key, *(_figure(entries.get(key)) for entries in arms.values())) for key in keys]
    prompts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in metrics.get("prompts", {}).items())
    return f"Test prompts: {prompts}. Value [95 % interval].\n\n" + _table(("metric", *arms), rows)


def _figure(entry: Mapping[str, Any] | None) -> str:
    if not entry:
        return ""
    return f"{entry['value']:.3g}" + (f" [{entry['low']:.3g}, {entry['high']:.3g}]" if "low" in entry else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
