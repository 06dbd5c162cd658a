"""`siren track`: the local records of runs, and their way to MLflow."""

from pathlib import Path
from typing import Annotated

import typer

track = typer.Typer(name="track", no_args_is_help=True, help="The local record of runs and its export to MLflow.")


@track.command()
def flush(
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a store that does not answer.")] = 120.0,
    redirect: Annotated[
        str | None,
        typer.Option(help="A store that is gone: send its runs to the present one instead.", metavar="OLD_URI"),
    ] = None,
) -> None:
    """Send every local record to MLflow now, or wait until the exporter has."""
    from siren.tracking import export, lineage

    root = lineage.project_root()
    if redirect is not None:
        print(f"{export.redirect(root, redirect, timeout)} runs of {redirect} are for the present store now")
    print(f"{export.flush(root, timeout)} runs are in MLflow")


@track.command("log")
def show_log(
    name: Annotated[str, typer.Argument(help="A stage (its last run), or the id of a run.", metavar="RUN")],
) -> None:
    """What a run printed, and the traceback of what ended it."""
    from siren.tracking import lineage, records

    print(records.log(lineage.project_root(), name), end="")


@track.command("import")
def import_records(
    folder: Annotated[Path, typer.Argument(help="A project, its .siren/runs, or one of these.", metavar="DIR")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a store that does not answer.")] = 120.0,
) -> None:
    """Bring the records of a machine that has no MLflow to this project's, and send them."""
    from siren.tracking import export, lineage, records, store

    root = lineage.project_root()
    brought = records.bring(folder, root)
    export.flush(root, timeout, store.address(root))
    print(f"{len(brought)} runs of {folder} are in MLflow")
