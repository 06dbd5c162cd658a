"""Any system's sounds against real ones, and the paper's claims and page."""

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siren import progress

if TYPE_CHECKING:
    from siren.evaluate.measure import Measured


def measure(
    generated: Annotated[Path, typer.Argument(help="A system's sounds.")],
    reference: Annotated[Path, typer.Argument(help="The real ones, under the same names.")],
    manifest: Annotated[
        Path | None,
        typer.Argument(help="CSV, JSONL or Parquet: file, caption, perhaps labels; by default the one in REFERENCE."),
    ] = None,
    networks: Annotated[Path, typer.Option(help="Folder of judges, CLAPs and ImageBind.")] = Path("models"),
    out: Annotated[Path, typer.Option(help="The record, as JSON.")] = Path("measured.json"),
    take: Annotated[
        list[Path] | None, typer.Option(help="Further clips of the same prompts, for best of N; may be given again.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Of how many clips each was chosen; recorded.")] = 1,
    resampler: Annotated[str, typer.Option(help="hann, as audioldm_eval, or soxr.")] = "hann",
    min_seconds: Annotated[float, typer.Option(help="Judges hear shorter clips padded to this.")] = 2.0,
    resamples: Annotated[int, typer.Option(min=1, help="Behind the interval of a mean; a tenth of a set's.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    cache: Annotated[Path, typer.Option(help="Features, by content.")] = Path(".siren/features"),
    seed: Annotated[int, typer.Option(help="Of the intervals.")] = 0,
) -> None:
    """Any system's sounds against real ones: FD, FAD, KAD, KL, IS, CLAP and ImageBind scores with intervals."""
    import torch

    from siren.evaluate import measure as measuring
    from siren.evaluate.features import Preparation

    request = measuring.Request(
        generated=generated,
        reference=reference,
        manifest=manifest,
        networks=networks,
        cache=cache,
        takes=tuple(take or ()),
        candidates=candidates,
        preparation=Preparation(resampler, min_seconds),
        batch_size=batch_size,
        resamples=resamples,
        seed=seed,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    measured = measuring.measure(request)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(measured.record, indent=1) + "\n")
    _print_measured(measured, measuring.rows(measured.record))
    print(out)


def _print_measured(measured: "Measured", rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("figure", "generated", "interval (95 %)", "reference", "clips")
    table.columns[0].overflow = "fold"  # a figure is nothing without the name of its network
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    console.print(table)
    for note in measured.record["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in measured.seconds.items())
    progress.notice(f"{measured.forwards} batches through networks; {spent}")


def captions(
    candidates: Annotated[
        Path, typer.Argument(help="A system's captions: CSV, JSONL or Parquet with file (or id) and caption.")
    ],
    references: Annotated[
        Path, typer.Argument(help="People's, likewise; several rows of a clip, or caption_1, caption_2, …")
    ],
    column: Annotated[str | None, typer.Option("--id", help="The column that says which clip, in both tables.")] = None,
    out: Annotated[Path | None, typer.Option(help="The record, as JSON.")] = None,
    clips: Annotated[Path | None, typer.Option(help="Each clip's own scores, as CSV.")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Behind the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the intervals.")] = 0,
) -> None:
    """A captioner's captions against people's: BLEU, ROUGE-L, CIDEr-D, words; with intervals, and what people reach."""
    from siren.cli.tables import print_table
    from siren.evaluate import captions as scoring

    record, parts = scoring.compare(candidates, references, column, resamples, seed)
    fewest, most = record["references"]
    several = str(fewest) if fewest == most else f"{fewest} to {most}"
    print_table(["figure", "value", "interval (95 %)", "people, one against the others"], scoring.rows(record))
    progress.notice(f"{record['clips']} clips with {several} references; a paper's CIDEr is 100 times cider_d")
    for path, text in ((out, json.dumps(record, indent=1) + "\n"), (clips, scoring.csv_of(parts))):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(path)


def or_measure(stage: Callable[[], None]) -> Callable[..., None]:
    """`siren evaluate` is the stage; with two folders it is `siren measure`."""
    signature = inspect.signature(measure)
    paths = ("generated", "reference")
    parameters = [p.replace(default=None) if p.name in paths else p for p in signature.parameters.values()]

    def run(**arguments: Any) -> None:
        given = [p.name for p in parameters if arguments[p.name] != p.default]
        if not given:
            stage()
        elif arguments["generated"] is None or arguments["reference"] is None:
            raise ValueError(
                f"siren evaluate with {', '.join(given)} needs two folders, GENERATED and REFERENCE; without arguments "
                "it is the pipeline's stage"
            )
        else:
            measure(**arguments)

    run.__doc__ = f"{stage.__doc__} Given two folders: `siren measure` of any system's sounds."
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    optional = {name: Annotated[Path | None, *measure.__annotations__[name].__metadata__] for name in paths}
    run.__annotations__ = measure.__annotations__ | optional
    return run


def claims(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...; an interval needs at least 2.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each training; by default those of params.yaml.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm; may be given again.")] = None,
    alignment: Annotated[
        bool, typer.Option("--alignment", help="Those about alignment: reports/alignment.md.")
    ] = False,
) -> None:
    """Try the paper's claims about its arms: train, sample and judge each at some seeds; reports/claims.md."""
    from siren import config
    from siren.stages import experiments

    tried = experiments.alignment_claims if alignment else experiments.claims
    tried(range(seeds), config.load(), steps, arm or ())


def paper(
    run: Annotated[
        bool, typer.Option("--run", help="First run what is missing: hours; stopped, it continues.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Of the arms and of alignment; an interval needs at least 2.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each arm's training; by default params.yaml's.")] = None,
    candidates: Annotated[int, typer.Option(min=2, help="Up to how many clips best of N chooses from.")] = 8,
) -> None:
    """The paper's tables and figures beside what was run here, with verdicts on its claims: reports/paper.html."""
    from siren import config
    from siren.stages import experiments

    print(experiments.paper(run, range(seeds), config.load(), steps, candidates))
