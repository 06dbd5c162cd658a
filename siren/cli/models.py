"""The registry's models, and weights in the formats of others."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siren.cli.tables import print_columns, print_table

if TYPE_CHECKING:
    from siren.tracking.promotion import Verdict


def promote(
    model: Annotated[str, typer.Option(help="Name of the registered model.")] = "siren",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the comparison and change nothing.")] = False,
    licence: Annotated[
        list[str] | None, typer.Option(help="Allow only this one; may be given again. By default collect.licences.")
    ] = None,
) -> None:
    """Make the challenger the champion, if it passes the gate."""
    from siren.tracking import promotion

    verdict = promotion.judge(model, licences=licence)
    _print_verdict(verdict)
    if verdict.champion and verdict.champion.number == verdict.challenger.number:
        print(f"{verdict.challenger.uri} is the champion already; the next run of the pipeline registers a challenger")
    elif dry_run and verdict.passed:
        print(f"{verdict.challenger.uri} would become the champion")
    else:
        promotion.promote(verdict)
        print(f"{verdict.challenger.uri} is the champion now")


def rollback(
    model: Annotated[str, typer.Option(help="Name of the registered model.")] = "siren",
    to: Annotated[str | None, typer.Option(help="Version; by default the champion before this one.")] = None,
    why: Annotated[str, typer.Option(help="Kept in the trace.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
) -> None:
    """Make an earlier version the champion again, once its bytes are checked."""
    from siren.tracking import promotion

    version = promotion.rollback(model, to, why, dry_run)
    print(f"{version.uri} {'would be' if dry_run else 'is'} the champion {'again' if dry_run else 'now'}")
    moves = [
        [move[key] or "" for key in ("at", "by", "what", "from", "to", "why")] for move in promotion.history(model)
    ]
    print_table(["when", "by", "what", "from", "to", "why"], moves)


def lineage(
    what: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, or an output such as data/tokens.")
    ],
    model: Annotated[str, typer.Option(help="Of a path: the registered model to look among.")] = "siren",
    state: Annotated[
        Path | None, typer.Option(help="Of a model: write its dvc.lock, dvc.yaml and params.yaml to this folder.")
    ] = None,
) -> None:
    """Where a model comes from: commit, data, runs; or which models came from some data."""
    from siren.tracking import origin

    if not what.startswith("models:"):
        found = origin.models_of(what, model)
        print(f"{what} is {found.digest} here")
        print_columns(["version", "aliases", "registered", f"its {what}", "the same"], found.rows)
        return
    told = origin.of_model(what, state)
    for key, value in told.facts.items():
        print(f"{key:10} {value}")
    print()
    print_columns(["output", "DVC's hash", "made by the run", "run id"], told.data)
    print("\nTo bring that state back, in the project's root:")
    print("\n".join(f"    {command}" for command in told.restore))


def import_checkpoint(
    folder: Annotated[Path, typer.Argument(help="Where its manifest.json lies.", metavar="DIR")],
    out: Annotated[Path, typer.Option(help="Folder for the transformers 0 to 5.")] = Path("models/imported"),
    codec: Annotated[
        str | None, typer.Option(help="The codec it must belong to; by default models/codec, if there is one; or none.")
    ] = None,
    clap: Annotated[
        str | None, typer.Option(help="The text encoder it reads; by default models/clap, if there is one; or none.")
    ] = None,
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make it a version of this model in the registry as well.")
    ] = None,
) -> None:
    """A stage-1 checkpoint in the authors' published format to this project's."""
    from siren.stages import exchange

    codec_folder, clap_folder = _network("codec", codec), _network("clap", clap)
    print("\n".join(exchange.import_checkpoint(folder, out, codec_folder, clap_folder, register)))


def export_checkpoint(
    model: Annotated[str, typer.Argument(help="A folder of transformers, or a model as `generate` takes it.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.json and what it names.")],
) -> None:
    """Transformers of this project to the authors' published format."""
    from siren.stages import exchange
    from siren.tracking import registry

    print(exchange.export_checkpoint(registry.open_bundle(model)[0], out))


def import_clap(
    weights: Annotated[
        Path, typer.Argument(help="A checkpoint of laion_clap or of MS-CLAP; tokenizer.json beside it.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for it, below the --networks of `siren measure`.")],
) -> None:
    """A published CLAP to this project's format, so that it scores beside others; nothing is unpickled."""
    from siren.networks import clap

    made = clap.import_file(weights)
    clap.save(out, made, clap.extra(str(weights)))
    print(f"{out}: {type(made.arch).__name__} at {made.sample_rate} Hz")


def _network(name: str, given: str | None) -> Path | None:
    """The folder of a network that may be left out (`none`), or by default the pipeline's, if there is one."""
    from siren.stages import places

    if given is None:
        default = places.MODELS / name
        return default if default.is_dir() else None
    return None if given == "none" else Path(given)


def _print_verdict(verdict: "Verdict") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    champion = f"champion {verdict.champion.uri}" if verdict.champion else "no champion yet"
    table = Table("check", f"challenger {verdict.challenger.uri}", champion, "passed", "why")
    for check in verdict.checks:
        passed = {True: "yes", False: "NO", None: "not asked"}[check.passed]
        table.add_row(*map(escape, (check.name, check.challenger, check.champion, passed, check.reason)))
    Console().print(table)
