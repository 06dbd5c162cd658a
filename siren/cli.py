"""The command `siren`: a verb for each stage, and verbs for people.

Stage verbs take no flags: their numbers come from params.yaml. They are read off `siren.stages`, in its order: every
public function there whose first argument is the settings is a stage, and its docstring is the verb's help. Imports
are inside the verbs, so that `siren --help` answers at once.
"""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text-to-audio language models over residual codes: corpus, training, alignment, evaluation, registry.",
)
track = typer.Typer(no_args_is_help=True, help="The local record of runs and its export to MLflow.")
app.add_typer(track, name="track", rich_help_panel="For people")
PEOPLE = "For people"


def stage_functions() -> dict[str, Callable[..., Any]]:
    """Name → function of every stage, in the order of `siren.stages`."""
    from siren import stages

    found = inspect.getmembers(stages, inspect.isfunction)
    own = [(n, f) for n, f in found if f.__module__ == stages.__name__ and not n.startswith("_")]
    ordered = sorted(own, key=lambda item: item[1].__code__.co_firstlineno)
    return {name: f for name, f in ordered if next(iter(inspect.signature(f).parameters), "") == "config"}


def _verb(function: Callable[..., Any]) -> Callable[..., None]:
    """The stage as a command: the settings are read here, other arguments (`stage1 K`) come from the command line."""
    signature = inspect.signature(function)

    def run(**arguments: Any) -> None:
        from siren import config

        function(config.load(), **arguments)

    run.__name__ = function.__name__
    run.__doc__ = (inspect.getdoc(function) or "").split("\n\n")[0]
    run.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    run.__annotations__ = {k: v for k, v in function.__annotations__.items() if k not in ("config", "return")}
    return run


@app.command(rich_help_panel=PEOPLE)
def generate(
    prompts: Annotated[list[str], typer.Argument(help="What to hear, one clip each.", metavar="PROMPT...")],
    model: Annotated[
        str, typer.Option(help="A registry address, or the folder of a model.")
    ] = "models:/siren@champion",
    out: Annotated[Path, typer.Option(help="Folder for the WAV files and their JSON sidecars.")] = Path("generated"),
    seed: Annotated[int, typer.Option(help="Same seed, same sound.")] = 0,
) -> None:
    """Prompts to WAV files, with a registered model."""
    raise ValueError("siren generate is being written")


def main() -> None:
    """Run the command line. A user's mistake is one line and exit code 1; `SIREN_DEBUG=1` shows the traceback."""
    for name, function in stage_functions().items():
        app.command(name, rich_help_panel="Stages, in order (settings from params.yaml)")(_verb(function))
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("SIREN_DEBUG") == "1":
            raise
        print(f"siren: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
