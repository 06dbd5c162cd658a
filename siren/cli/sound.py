"""Prompts to sound: on the command line, over HTTP, in a browser."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siren import progress
from siren.textfile import lines, read_text

if TYPE_CHECKING:
    from siren.serve.engine import Engine

CHAMPION = "models:/siren@champion"
BATCH = 16  # clips sampled at once by `generate`; which clips share a batch does not change them
AllowHost = Annotated[
    list[str] | None, typer.Option(help="A name under which it is reached, such as a proxy's; may be given again.")
]


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to hear.", metavar="[PROMPT]...")] = None,
    file: Annotated[str | None, typer.Option(help="A prompt on each line of this file; - for standard input.")] = None,
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder.")
    ] = CHAMPION,
    out: Annotated[Path, typer.Option(help="Folder for sounds and their JSON sidecars.")] = Path("generated"),
    seed: Annotated[int, typer.Option(help="Same prompt and seed, same sound.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Clips for each prompt, at seeds SEED, SEED + 1, ...")] = 1,
    seconds: Annotated[
        float | None, typer.Option(help="Length, to the sample; by default that of the training clips.")
    ] = None,
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
    sampling = dataclasses.replace(bundle.sampling, **changes)
    job = batch.Job(bundle.num_samples(seconds), sampling, facts, best_of, f".{format}", prefix)
    wanted = batch.clips(texts, seed, samples, out, job.suffix)
    rest = [clip for clip in wanted if not batch.finished(clip, job)]
    if len(rest) < len(wanted):
        progress.notice(f"{len(wanted) - len(rest)} of {len(wanted)} clips are there already")
    if rest:
        needed = bundle.memory(1 if stream else min(batch_size, len(rest)), job.seconds, sampling)
        total = needed["total"] + (best_of - 1) * needed["sound"]
        progress.notice(f"sampling takes {total / 2**20:,.0f} MiB besides the model")
        if said := bundle.slides(job.seconds):
            progress.notice(f"{job.seconds:g} s is {said}")
    if stream:
        for clip in rest:
            for done in batch.make_streaming(bundle, clip, job):
                progress.notice(f"{clip.path}: {done:.2f} of {job.seconds:.2f} s")
    else:
        for _ in progress.track(batch.make(bundle, rest, job, batch_size), "generate", len(rest), unit="clip"):
            pass
    for clip in wanted:
        print(clip.path)


def serve(
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
    allow_host: AllowHost = None,
    grace: Annotated[int, typer.Option(min=0, help="Seconds to finish clips in when it is stopped.")] = 30,
) -> None:
    """Sound over HTTP: /generate, /healthz, /readyz, /metrics; a page at / that tells how."""
    from siren.serve.app import app as service
    from siren.serve.app import run
    from siren.serve.hosts import names
    from siren.tracking import registry

    known = names(host, allow_host)
    folder, name = registry.open_bundle(model)
    engine = _engine(folder, rows, queue, max_seconds, max_prompt, memory)
    progress.notice(f"http://{host}:{port} · {name} · sampling takes {engine.memory / 2**20:,.0f} MiB")
    run(service(engine, name, known), [engine], host, port, connections, grace)


def ui(
    model: Annotated[
        list[str] | None, typer.Option(help="As in `generate`; given again, the models can be compared.")
    ] = None,
    host: Annotated[str, typer.Option(help="Another than loopback lets others in, without a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7862,
    max_seconds: Annotated[float, typer.Option(help="Of a clip.")] = 30.0,
    allow_host: AllowHost = None,
) -> None:
    """A page in the browser: prompts to sound that is heard while it is made, two models side by side."""
    from siren.serve.app import run
    from siren.serve.hosts import names
    from siren.serve.ui import app as page

    known = names(host, allow_host)
    engines, same = _engines(model or [CHAMPION], max_seconds)
    progress.notice(f"http://{host}:{port} · {', '.join([*engines, *same])}")
    run(page(engines, same, known), list(engines.values()), host, port, connections=256, grace_seconds=5)


def _engines(models: list[str], seconds: float) -> tuple[dict[str, "Engine"], list[str]]:
    """The engine of each model by its name, and what is to be said of one with two names: it is loaded once."""
    from siren.tracking import registry

    engines: dict[str, Engine] = {}
    given: dict[str, str] = {}  # digest → how it was asked for
    same = []
    for address in models:
        folder, name = registry.open_bundle(address)
        from siren.generate.bundle import sha256  # only after the model was found

        digest = sha256(folder)
        if digest in given:
            twice = "twice" if address == given[digest] else f"and {address}"
            same.append(f"{given[digest]} {twice}: the same model ({digest[:12]}), loaded once")
        else:
            given[digest] = address
            engines[name] = _engine(folder, 4, 64, seconds, 1000, None)
    return engines, same


def _engine(folder: Path, rows: int, queue: int, seconds: float, prompt: int, memory: float | None) -> "Engine":
    """What makes the sound of a service, not started."""
    import torch

    from siren.generate.bundle import Bundle
    from siren.serve.engine import Engine, Limits

    bundle = Bundle.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    limits = Limits(rows=rows, queue=queue, seconds=seconds, prompt_characters=prompt)
    return Engine(bundle, limits, memory=None if memory is None else round(memory * 2**20))


def _lines(file: str) -> list[str]:
    """The prompts of a file, or of standard input; empty lines are none."""
    if file != "-" and not Path(file).is_file():
        raise ValueError(f"no file {file}; --file takes one with a prompt on each line, or - for standard input")
    text = sys.stdin.read().removeprefix("\ufeff") if file == "-" else read_text(Path(file))
    return [line.strip() for line in lines(text) if line.strip()]
