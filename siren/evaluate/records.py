"""What earlier stages left behind, read for the report: curves, quarantine tables, figures of the networks.

A part that is not there becomes a sentence that says so and what would make it; it is never passed over.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Curve = dict[str, tuple[list[int], list[float]]]  # metric → (steps, values)


@dataclass(frozen=True)
class Missing:
    """A part that the report should have: which section lacks it, and the sentence that says so."""

    section: str
    text: str


@dataclass
class Records:
    """Reads parts and keeps a list of those that are missing."""

    missing: list[Missing] = field(default_factory=list)

    def curve(self, path: Path, stage: str) -> Curve | None:
        return self._read(path, "training", stage, read_curve)

    def json(self, path: Path, section: str, stage: str) -> dict[str, Any] | None:
        return self._read(path, section, stage, lambda p: json.loads(p.read_text()))

    def sweep(self, path: Path) -> list[dict[str, Any]] | None:
        """What thresholds keep, as `select` wrote it."""
        return self._read(path, "corpus", "select", _read_csv)

    def rows(self, path: Path, stage: str) -> int | None:
        """Number of rows of a Parquet file, or of all files that a pattern such as `segments-*.parquet` names."""
        import pyarrow.parquet as pq

        files = sorted(path.parent.glob(path.name))
        if not files:
            self._note(path, "corpus", stage)
            return None
        return sum(pq.read_metadata(file).num_rows for file in files)

    def quarantine(self, folders: Mapping[str, Path]) -> list[dict[str, Any]]:
        """Stage, reason, how many, and the first item for instance; most frequent first within a stage's order."""
        found = []
        for stage, folder in folders.items():
            table = self._read(folder / "quarantine.parquet", "corpus", stage, _read_rows)
            found += summarise(table or [])
        return found

    def _read(self, path: Path, section: str, stage: str, reader: Any) -> Any:
        if not path.is_file():
            self._note(path, section, stage)
            return None
        return reader(path)

    def _note(self, path: Path, section: str, stage: str) -> None:
        self.missing.append(Missing(section, f"{path} was not there; “dvc repro {stage}” writes it."))


def read_curve(path: Path) -> Curve:
    """A CSV with a column `step`; empty cells are points that were not measured."""
    curve: Curve = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value not in ("", None):
                    steps, values = curve.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
    return curve


def summarise(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Quarantine rows grouped by stage and reason, most frequent first."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["stage"], row["reason"]), []).append(row)
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        {"stage": stage, "reason": reason, "count": len(items), "item": items[0]["item"], "detail": items[0]["detail"]}
        for (stage, reason), items in ranked
    ]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    from pyarrow import csv

    return list(csv.read_csv(path).to_pylist())


def _read_rows(path: Path) -> list[dict[str, str]]:
    import pyarrow.parquet as pq

    return list(pq.read_table(path).to_pylist())
