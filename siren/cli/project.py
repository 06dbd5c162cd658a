"""The project itself: its settings, what this machine lacks for them, and what may be deleted."""

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siren.cli.tables import megabytes, print_table

if TYPE_CHECKING:
    from siren.config import Config


def params(
    scale: Annotated[str, typer.Argument(help="A file of conf/scale: demo, small, ...")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Hydra overrides, such as align.steps=40.")] = None,
) -> None:
    """Compose params.yaml from conf/, as `dvc exp run -S scale=...` does, and check it."""
    from siren.atomic import replacing

    with replacing("params.yaml", suffix=".yaml") as partial:
        _compose(scale, overrides or [], partial)
    print(f"params.yaml: scale {scale}")


def _compose(scale: str, overrides: list[str], path: Path) -> "Config":
    """Write the settings of a scale to `path` and read them back. Raises ValueError for an unknown scale."""
    from siren import config

    conf = Path("conf").resolve()
    groups = tuple(f"{path.name}=" for path in conf.iterdir() if path.is_dir())
    chosen = [("scale", scale), *(tuple(o.split("=", 1)) for o in overrides or [] if o.startswith(groups))]
    for group, name in chosen:
        names = sorted(p.stem for p in (conf / group).glob("*.yaml"))
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none here'}"
            raise ValueError(f"no {group} {name!r} in {conf / group}; {hint}")
    from dvc.utils.hydra import compose_and_dump

    compose_and_dump(path, str(conf), None, "config", "", [f"scale={scale}", *overrides])
    return config.load(path)


def doctor(
    scale: Annotated[str | None, typer.Option(help="A file of conf/scale; without it, what params.yaml says.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as data.")] = False,
) -> None:
    """What a scale costs, and what this machine lacks for it; exit code 1 where something is missing."""
    import tempfile

    from siren import config
    from siren import doctor as diagnosis

    if scale is None:
        settings = config.load()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            settings = _compose(scale, [], Path(scratch) / "params.yaml")
    found = diagnosis.diagnose(settings)
    print(json.dumps(found.to_dict(), indent=1) if as_json else diagnosis.text(found))
    raise typer.Exit(1 if found.missing else 0)


def gc(
    days: Annotated[float, typer.Option(min=0, help="Keep what was touched since then.")] = 7.0,
    delete: Annotated[
        bool, typer.Option("--delete/--dry-run", help="By default sizes are shown, nothing is deleted.")
    ] = False,
    claims: Annotated[
        bool, typer.Option("--claims", help="Also what `siren claims` and `siren paper` keep, and would train again.")
    ] = False,
) -> None:
    """What can go: cached data of no model, branch or tag; records, checkpoints, halves and arms that are done with."""
    from siren import housekeeping

    found = housekeeping.collect(Path.cwd(), days)
    taken = [(what, path) for what, path in found if claims or what not in housekeeping.ON_REQUEST]
    rows = []
    for what, paths, count in (*housekeeping.totals(found)[:-1], housekeeping.totals(taken)[-1]):
        left = "" if claims or what not in housekeeping.ON_REQUEST else " (only with --claims)"
        rows.append([what + left, str(len(paths)), megabytes(count)])
    print_table(["what", "files", "size"], rows)
    if delete:
        print(f"{megabytes(housekeeping.remove(Path.cwd(), taken))} freed")
    else:
        print("nothing was deleted; `siren gc --delete` does")


def gaps(
    folder: Annotated[
        Path, typer.Argument(help="Transcripts: ID.LANGUAGE.vtt or .json3, perhaps ID.info.json beside.")
    ],
    out: Annotated[Path, typer.Argument(help="The manifest: video, start, end, title; for a source of kind `videos`.")],
    min_seconds: Annotated[float, typer.Option(help="Shorter stretches are left out.")] = 5.0,
    margin_seconds: Annotated[float, typer.Option(help="Kept from every word.")] = 0.5,
) -> None:
    """The stretches of videos without words, of their transcripts: a manifest of what is worth fetching."""
    import csv

    from siren.collect.fetch import transcripts
    from siren.evaluate.records import summarise

    settings = transcripts.Transcripts(str(folder), min_seconds, margin_seconds)
    rows, left_out = transcripts.listed(settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("video", "start", "end", "title"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    videos, hours = len({row["video"] for row in rows}), sum(row["end"] - row["start"] for row in rows) / 3600
    print(f"{out}: {len(rows)} stretches of {videos} videos, {hours:.2f} h")
    for why in summarise(left_out):
        print(f"{why['count']} videos left out, {why['reason']}: e.g. {why['item']}, {why['detail']}")
