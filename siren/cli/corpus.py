"""`siren corpus`: what became of every clip."""

import json
from typing import Annotated

import typer

from siren.cli.tables import figure, print_table

corpus = typer.Typer(
    name="corpus", invoke_without_command=True, help="What became of the corpus: funnel, hours, licences, reasons."
)


@corpus.callback()
def overview(
    context: typer.Context,
    tau: Annotated[list[float] | None, typer.Option(help="Count pairs kept at this score; may be given again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as data.")] = False,
) -> None:
    """What became of the corpus: the funnel, hours, sources, licences, and what is in quarantine."""
    if context.invoked_subcommand is not None:
        return
    from siren import config
    from siren.stages import corpus as stages

    found = stages.audit(tau or (), config.load())
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    print_table(["step", "items", "hours"], [[name, f"{n:,}", f"{h:.2f}" if h else ""] for name, n, h in found.funnel])
    for rows in (found.sources, found.licences, found.quarantined):
        columns = list(dict.fromkeys(key for row in rows for key in row))
        print_table(columns, [[figure(row.get(key)) for key in columns] for row in rows])


@corpus.command()
def show(
    name: Annotated[str, typer.Argument(help="A clip, a segment, or an item in quarantine.", metavar="ID")],
) -> None:
    """One item's whole history: where it came from, what every stage made of it, and why it was left out."""
    from siren import config
    from siren.stages import corpus as stages

    text, story = stages.history(name, config.load())
    for stage, facts in story:
        print(stage)
        for key, value in facts.items():
            if value is not None:
                print(f"  {key}: {text(value)}")
