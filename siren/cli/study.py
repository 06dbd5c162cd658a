"""`siren study`: a listening test with people."""

import json
from pathlib import Path
from typing import Annotated

import typer

from siren import progress
from siren.cli.tables import print_table

study = typer.Typer(
    name="study", no_args_is_help=True, help="A listening test: blinded rankings by people, and what they say."
)
Study = Annotated[Path, typer.Argument(help="Folder of the study.", metavar="STUDY")]


@study.command()
def prompts(
    manifest: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet: file, caption, and perhaps labels.")],
    out: Annotated[Path, typer.Option(help="The list, with a column `set`.")] = Path("study-prompts.csv"),
    general: Annotated[int, typer.Option(min=0, help="Drawn from the manifest.")] = 30,
    many: Annotated[int, typer.Option(min=0, help="Drawn from its prompts of more than two events.")] = 30,
    unusual: Annotated[int, typer.Option(min=0, help="Made: sounds that it never has together.")] = 30,
    seed: Annotated[int, typer.Option(help="Same seed, same prompts.")] = 0,
) -> None:
    """Three prompt sets as in the paper: general, multi-event, out-of-distribution."""
    import csv

    from siren.evaluate.folders import read_manifest
    from siren.study.prompts import choose

    rows = choose(read_manifest(manifest), general, many, unusual, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "caption", "labels", "set"])
        writer.writerows([f"{r['id']}.wav", r["caption"], ";".join(r["labels"]), r["set"]] for r in rows)
    print(f"{out}: {len(rows)} prompts")


@study.command()
def make(
    folder: Study,
    manifest: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet: file, caption, and perhaps set.")],
    system: Annotated[list[str], typer.Option(metavar="NAME=FOLDER", help="Its sounds, named as in the list; again.")],
    seed: Annotated[int, typer.Option(help="Of every rater's order.")] = 0,
) -> None:
    """A study of several systems' sounds: blinded copies of equal loudness."""
    from siren.study import design

    if wrong := [text for text in system if "=" not in text]:
        raise ValueError(f"--system is {wrong[0]!r}; it must be NAME=FOLDER")
    systems = {name: Path(path) for name, path in (text.split("=", 1) for text in system)}
    if len(systems) < len(system):
        raise ValueError("two systems have one name; give each its own")
    made, notes = design.make(folder, manifest, systems, seed)
    for note in notes:
        print(f"note: {note}")
    print(f"{folder}: {len(made.trials)} prompts, {len(made.systems)} systems")


@study.command()
def serve(
    folder: Study,
    host: Annotated[str, typer.Option(help="Another than loopback lets others in, without a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1)] = 7861,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name under which raters reach it, such as a proxy's; may be given again."),
    ] = None,
) -> None:
    """Serve the listening test until it is stopped; answers are on the disk before they are confirmed."""
    import uvicorn

    from siren.serve.hosts import names
    from siren.study.server import app as listening

    server = listening(folder, names(host, allow_host))
    progress.notice(f"http://{host}:{port}")
    uvicorn.run(server, host=host, port=port, log_level="warning")


@study.command()
def results(
    folder: Study,
    resamples: Annotated[int, typer.Option(min=1, help="Behind every interval.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the intervals.")] = 0,
) -> None:
    """What the raters said: shares ranked best with intervals, and agreement. Also results.json, .html and PNGs."""
    from siren.study import results as found

    record = found.results(folder, resamples, seed)
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    print_table(
        ["set", "question", "system", "ranked best", "mean rank", "answers"], [list(r) for r in found.rows(record)]
    )
    for path in found.write(folder, record):
        print(path)
