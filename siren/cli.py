"""The command `siren`: a verb for each stage, and verbs for people.

Stage verbs take no flags: their numbers come from params.yaml. They are `STAGES` of `siren.stages.pipeline`, in its
order, and a stage's docstring is the verb's help. Imports are inside the verbs, so that `siren --help` answers at once.
"""

import difflib
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siren import progress

if TYPE_CHECKING:
    from siren.config import Config
    from siren.evaluate.measure import Measured
    from siren.serve.engine import Engine
    from siren.tracking.promotion import Verdict

CHAMPION = "models:/siren@champion"
BATCH = 16  # clips sampled at once by `generate`; which clips share a batch does not change them
PEOPLE, STAGES = "For people", "Stages, in order; their settings are in params.yaml"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text-to-audio language models over residual codes: corpus, training, alignment, evaluation, registry.",
)
track = typer.Typer(no_args_is_help=True, help="The local record of runs and its export to MLflow.")
app.add_typer(track, name="track", rich_help_panel=PEOPLE)
corpus = typer.Typer(invoke_without_command=True, help="What became of the corpus: funnel, hours, licences, reasons.")
app.add_typer(corpus, name="corpus", rich_help_panel=PEOPLE)
study = typer.Typer(no_args_is_help=True, help="A listening test: blinded rankings by people, and what they say.")
app.add_typer(study, name="study", rich_help_panel=PEOPLE)


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


@app.command(rich_help_panel=PEOPLE)
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to hear.", metavar="[PROMPT]...")] = None,
    file: Annotated[str | None, typer.Option(help="A prompt on each line of this file; - for standard input.")] = None,
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder.")
    ] = CHAMPION,
    out: Annotated[Path, typer.Option(help="Folder for sounds and their JSON sidecars.")] = Path("generated"),
    seed: Annotated[int, typer.Option(help="Same prompt and seed, same sound.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Clips for each prompt, at seeds SEED, SEED + 1, ...")] = 1,
    seconds: Annotated[float | None, typer.Option(help="Length; by default that of the training clips.")] = None,
    temperature: Annotated[float | None, typer.Option(help="By default as the model was registered.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Likewise; 1 takes the likeliest code.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Likewise.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Likewise; 1 is none. Needs dropped text in training.")] = None,
    best_of: Annotated[int, typer.Option(min=1, help="Make so many of each clip and keep what CLAP likes best.")] = 1,
    format: Annotated[str, typer.Option(help="wav or flac.")] = "wav",
    stream: Annotated[bool, typer.Option("--stream", help="Clip by clip, written while it is made.")] = False,
    continue_from: Annotated[Path | None, typer.Option(help="Write what follows this sound.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips made at once; does not change them.")] = BATCH,
) -> None:
    """Prompts to sound files, with a registered model or one in a folder; finished files are left as they are."""
    import dataclasses

    from siren.tracking import registry

    texts = list(prompts or []) + (_lines(file) if file else [])
    if not texts:
        raise ValueError("no prompts; give them as arguments or with --file")
    if format not in ("wav", "flac"):
        raise ValueError(f"--format is {format!r}; there are wav and flac")
    if stream and (best_of > 1 or format != "wav"):
        raise ValueError("--stream writes a wav at once; leave out --best-of and --format")
    folder, name = registry.open_bundle(model)
    import torch  # only after the model was found

    from siren import audio
    from siren.generate import batch
    from siren.generate.bundle import Bundle
    from siren.hashing import file_sha256

    bundle = Bundle.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    facts: dict[str, Any] = {"model": name, "model_sha256": bundle.sha256, "sample_rate": bundle.sample_rate}
    facts |= {"precision": bundle.precision}
    prefix = None
    if continue_from:
        wav, rate = audio.read(continue_from)
        prefix = bundle.encode(audio.resample(audio.to_mono(wav), rate, bundle.sample_rate))
        facts |= {"continues": file_sha256(continue_from)}
    length = bundle.seconds if seconds is None else seconds
    sampling = dataclasses.replace(bundle.sampling, **changes)
    job = batch.Job(length, sampling, facts, best_of, f".{format}", prefix)
    wanted = batch.clips(texts, seed, samples, out, job.suffix)
    rest = [clip for clip in wanted if not batch.finished(clip, job)]
    if len(rest) < len(wanted):
        progress.notice(f"{len(wanted) - len(rest)} of {len(wanted)} clips are there already")
    if rest:
        needed = bundle.memory(1 if stream else min(batch_size, len(rest)), length, sampling)["total"]
        progress.notice(f"sampling takes {needed / 2**20:,.0f} MiB besides the model")
    if stream:
        for clip in rest:
            for done in batch.make_streaming(bundle, clip, job):
                progress.notice(f"{clip.path}: {done:.2f} of {length:.2f} s")
    else:
        for _ in progress.track(batch.make(bundle, rest, job, batch_size), "generate", len(rest), unit="clip"):
            pass
    for clip in wanted:
        print(clip.path)


@app.command("serve", rich_help_panel=PEOPLE)
def serve_model(
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder.")
    ] = CHAMPION,
    host: Annotated[str, typer.Option(help="Another than loopback lets others in, without a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    rows: Annotated[int, typer.Option(min=1, help="Clips that are made at once; memory is taken for all of them.")] = 8,
    queue: Annotated[int, typer.Option(min=1, help="Clips that may wait; beyond them 429 is answered.")] = 64,
    max_seconds: Annotated[float, typer.Option(help="Of a clip.")] = 30.0,
    max_prompt: Annotated[int, typer.Option(min=1, help="Characters; the model's tokens are a limit as well.")] = 1000,
    memory: Annotated[float | None, typer.Option(help="MiB; do not start where sampling needs more.")] = None,
    connections: Annotated[int, typer.Option(min=1, help="Beyond them 503 is answered.")] = 256,
    grace: Annotated[int, typer.Option(min=0, help="Seconds to finish clips in when it is stopped.")] = 30,
) -> None:
    """Sound over HTTP: /generate, /healthz, /readyz, /metrics; a page at / that tells how."""
    from siren.serve.app import app as service
    from siren.serve.app import run

    engine, name = _engine(model, rows, queue, max_seconds, max_prompt, memory)
    progress.notice(f"http://{host}:{port} · {name} · sampling takes {engine.memory / 2**20:,.0f} MiB")
    run(service(engine, name), [engine], host, port, connections, grace)


@app.command(rich_help_panel=PEOPLE)
def ui(
    model: Annotated[
        list[str] | None, typer.Option(help="As in `generate`; given again, the models can be compared.")
    ] = None,
    host: Annotated[str, typer.Option(help="Another than loopback lets others in, without a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7862,
    max_seconds: Annotated[float, typer.Option(help="Of a clip.")] = 30.0,
) -> None:
    """A page in the browser: prompts to sound that is heard while it is made, two models side by side."""
    from siren.serve.app import run
    from siren.serve.ui import app as page

    engines = {name: made for made, name in (_engine(m, 4, 64, max_seconds, 1000, None) for m in model or [CHAMPION])}
    progress.notice(f"http://{host}:{port} · {', '.join(engines)}")
    run(page(engines), list(engines.values()), host, port, connections=256, grace_seconds=5)


def _engine(
    model: str, rows: int, queue: int, seconds: float, prompt: int, memory: float | None
) -> tuple["Engine", str]:
    """What makes the sound of a service, not started, and the name of its model."""
    from siren.tracking import registry

    folder, name = registry.open_bundle(model)
    import torch

    from siren.generate.bundle import Bundle
    from siren.serve.engine import Engine, Limits

    bundle = Bundle.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    limits = Limits(rows=rows, queue=queue, seconds=seconds, prompt_characters=prompt)
    return Engine(bundle, limits, memory=None if memory is None else round(memory * 2**20)), name


def _lines(file: str) -> list[str]:
    """The prompts of a file, or of standard input; empty lines are none."""
    if file != "-" and not Path(file).is_file():
        raise ValueError(f"no file {file}; --file takes one with a prompt on each line, or - for standard input")
    text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


@app.command(rich_help_panel=PEOPLE)
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


@app.command(rich_help_panel=PEOPLE)
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
    _print_table(["when", "by", "what", "from", "to", "why"], moves)


@app.command(rich_help_panel=PEOPLE)
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
        _print_columns(["version", "aliases", "registered", f"its {what}", "the same"], found.rows)
        return
    told = origin.of_model(what, state)
    for key, value in told.facts.items():
        print(f"{key:10} {value}")
    print()
    _print_columns(["output", "DVC's hash", "made by the run", "run id"], told.data)
    print("\nTo bring that state back, in the project's root:")
    print("\n".join(f"    {command}" for command in told.restore))


@app.command(rich_help_panel=PEOPLE)
def gc(
    days: Annotated[float, typer.Option(min=0, help="Keep what was touched since then.")] = 7.0,
    delete: Annotated[
        bool, typer.Option("--delete/--dry-run", help="By default sizes are shown, nothing is deleted.")
    ] = False,
) -> None:
    """What can go: cached data of no model, branch or tag, and records and checkpoints that are no longer needed."""
    from siren import housekeeping

    found = housekeeping.collect(Path.cwd(), days)
    rows = [[what, str(len(paths)), _megabytes(count)] for what, paths, count in housekeeping.totals(found)]
    _print_table(["what", "files", "size"], rows)
    if delete:
        print(f"{_megabytes(housekeeping.remove(Path.cwd(), found))} freed")
    else:
        print("nothing was deleted; `siren gc --delete` does")


def _print_verdict(verdict: "Verdict") -> None:
    from rich.console import Console
    from rich.table import Table

    champion = f"champion {verdict.champion.uri}" if verdict.champion else "no champion yet"
    table = Table("check", f"challenger {verdict.challenger.uri}", champion, "passed", "why")
    for check in verdict.checks:
        passed = {True: "yes", False: "NO", None: "not asked"}[check.passed]
        table.add_row(check.name, check.challenger, check.champion, passed, check.reason)
    Console().print(table)


@app.command(rich_help_panel=PEOPLE)
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
    from rich.table import Table

    table = Table("figure", "generated", "interval (95 %)", "reference", "clips")
    table.columns[0].overflow = "fold"  # a figure is nothing without the name of its network
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for note in measured.record["notes"]:
        console.print(f"note: {note}", highlight=False)
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in measured.seconds.items())
    progress.notice(f"{measured.forwards} batches through networks; {spent}")


def _or_measure(stage: Callable[[], None]) -> Callable[..., None]:
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


@app.command(rich_help_panel=PEOPLE)
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
    chosen = [("scale", scale), *(tuple(o.split("=", 1)) for o in overrides or [] if o.startswith("model="))]
    for group, name in chosen:
        names = sorted(p.stem for p in (conf / group).glob("*.yaml"))
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none here'}"
            raise ValueError(f"no {group} {name!r} in {conf / group}; {hint}")
    from dvc.utils.hydra import compose_and_dump

    compose_and_dump(path, str(conf), None, "config", "", [f"scale={scale}", *overrides])
    return config.load(path)


@app.command(rich_help_panel=PEOPLE)
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


@app.command(rich_help_panel=PEOPLE)
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


def _network(name: str, given: str | None) -> Path | None:
    """The folder of a network that may be left out (`none`), or by default the pipeline's, if there is one."""
    from siren.stages import places

    if given is None:
        default = places.MODELS / name
        return default if default.is_dir() else None
    return None if given == "none" else Path(given)


@app.command(rich_help_panel=PEOPLE)
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


@app.command(rich_help_panel=PEOPLE)
def export_checkpoint(
    model: Annotated[str, typer.Argument(help="A folder of transformers, or a model as `generate` takes it.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.json and what it names.")],
) -> None:
    """Transformers of this project to the authors' published format."""
    from siren.stages import exchange
    from siren.tracking import registry

    print(exchange.export_checkpoint(registry.open_bundle(model)[0], out))


@app.command(rich_help_panel=PEOPLE)
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


@app.command(rich_help_panel=PEOPLE)
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
    from siren.stages import corpus

    found = corpus.audit(tau or (), config.load())
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    _print_table(["step", "items", "hours"], [[name, f"{n:,}", f"{h:.2f}" if h else ""] for name, n, h in found.funnel])
    for rows in (found.sources, found.licences, found.quarantined):
        columns = list(dict.fromkeys(key for row in rows for key in row))
        _print_table(columns, [[_figure(row.get(key)) for key in columns] for row in rows])


@corpus.command()
def show(
    name: Annotated[str, typer.Argument(help="A clip, a segment, or an item in quarantine.", metavar="ID")],
) -> None:
    """One item's whole history: where it came from, what every stage made of it, and why it was left out."""
    from siren.stages import corpus

    text, story = corpus.history(name)
    for stage, facts in story:
        print(stage)
        for key, value in facts.items():
            if value is not None:
                print(f"  {key}: {text(value)}")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _figure(value: Any) -> str:
    if value is None:
        return "0"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for number, column in enumerate(columns):
        figures = number and all(row[number][:1].isdigit() or not row[number] for row in rows)
        table.add_column(column, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _print_columns(columns: list[str], rows: list[list[str]]) -> None:
    """A table whose cells stay whole however narrow the terminal is: for hashes and ids, to be copied or searched."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in [columns, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


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

    from siren.study.server import app as listening

    server = listening(folder, allow_host or ())
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
    _print_table(
        ["set", "question", "system", "ranked best", "mean rank", "answers"], [list(r) for r in found.rows(record)]
    )
    for path in found.write(folder, record):
        print(path)


@track.command()
def flush(
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a store that does not answer.")] = 120.0,
) -> None:
    """Send every local record to MLflow now, or wait until the exporter has."""
    from siren.tracking import export, lineage

    root = lineage.project_root()
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
    from siren.tracking import export, lineage, records

    root = lineage.project_root()
    brought = records.bring(folder, root)
    export.flush(root, timeout)
    print(f"{len(brought)} runs of {folder} are in MLflow")


def main() -> None:
    """Run the command line. A user's mistake is one line and exit code 1; `SIREN_DEBUG=1` shows the traceback."""
    for name, function in stage_functions().items():
        verb = _verb(function)
        app.command(name, rich_help_panel=STAGES)(_or_measure(verb) if name == "evaluate" else verb)
    try:
        app()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if os.environ.get("SIREN_DEBUG") == "1" or (missing or "").startswith("siren"):
            raise
        lacking = f"this needs the package {missing}, which is not installed; `make setup` installs all that siren uses"
        print(f"siren: {lacking if missing else error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
