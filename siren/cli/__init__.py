"""The command `siren`: a verb for each stage, and verbs for people.

Stage verbs take no flags: their numbers come from params.yaml. They are `STAGES` of `siren.stages.pipeline`, in its
order, and a stage's docstring is the verb's help. Imports are inside the verbs, so that `siren --help` answers at once.
"""

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from siren.cli import measuring, models, project, sound
from siren.cli.corpus import corpus
from siren.cli.study import study
from siren.cli.track import track

STAGES = "Stages, in order; their settings are in params.yaml"
VERBS: dict[str, tuple[Callable[..., None] | typer.Typer, ...]] = {
    "Sound": (sound.generate, sound.ui, sound.serve),
    "Models": (
        models.promote,
        models.rollback,
        models.lineage,
        models.import_checkpoint,
        models.export_checkpoint,
        models.import_clap,
    ),
    "Measuring": (measuring.measure, measuring.captions, study, measuring.claims, measuring.paper),
    "The project": (project.params, project.doctor, corpus, project.gaps, track, project.gc),
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text-to-audio language models over residual codes: corpus, training, alignment, evaluation, registry.",
)


for _panel, _verbs in VERBS.items():
    for _one in _verbs:
        if isinstance(_one, typer.Typer):
            app.add_typer(_one, rich_help_panel=_panel)
        else:
            app.command(rich_help_panel=_panel)(_one)


def stage_functions() -> dict[str, Callable[..., Any]]:
    """Name → function of every stage, in the pipeline's order."""
    from siren.stages.pipeline import STAGES

    return STAGES


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


def main() -> None:
    """Run the command line. A user's mistake is one line and exit code 1; `SIREN_DEBUG=1` shows the traceback."""
    for name, function in stage_functions().items():
        verb = _verb(function)
        app.command(name, rich_help_panel=STAGES)(measuring.or_measure(verb) if name == "evaluate" else verb)
    try:
        app()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if os.environ.get("SIREN_DEBUG") == "1" or (missing or "").startswith("siren"):
            raise
        lacking = f"this needs the package {missing}, which is not installed; `make setup` installs all that siren uses"
        print(f"siren: {lacking if missing else error}", file=sys.stderr)
        sys.exit(1)
