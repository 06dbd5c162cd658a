"""Experiments that are no stages: the paper's claims, and its report. Nothing depends on them."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from siren.config import Config, to_dict
from siren.stages import places, reading
from siren.stages.align import build_reward
from siren.stages.places import CLAIMS, EARS, MODELS, REPORTS, SAMPLES, TOKENS
from siren.tracking import locks

HEARD_BY_PEOPLE = 3  # one-event prompts of which each arm leaves clips, and a third as many of two events


@contextmanager
def _at_work() -> Iterator[None]:
    """Several experiments may be; meanwhile `siren gc` offers nothing of theirs."""
    with locks.share(locks.place(Path.cwd(), "claims")):
        yield


@_at_work()
def claims(seeds: Sequence[int], config: Config, steps: int | None = None, only: Sequence[str] = ()) -> None:
    """The paper's claims about its arms: trains and judges each arm at each seed; reports/claims.json and claims.md.

    Not a stage: nothing depends on it, and it costs as much as many of them. Finished arms are kept in .siren/claims.
    """
    from siren.evaluate import claims as tried

    world, about = _arms(config, steps)
    count = world.tables.num_codebooks
    needed = tried.needed(count)
    results = tried.run(only or needed, seeds, world, CLAIMS, needed)
    _write_claims("claims", results, lambda found: tried.report(found, about, tried.tried(count)))


def _arms(config: Config, steps: int | None) -> tuple[Any, dict[str, Any]]:
    """What the paper's arms are trained on and judged with, and what a report says of it."""
    import dataclasses

    from siren.encode.tokens import read_tokens
    from siren.evaluate import claims as tried
    from siren.networks import codec as codecs

    device, stage1 = places.device(), config.train.stage1
    if steps is not None:
        warmup = min(stage1.training.warmup_steps, steps - 1)
        stage1 = dataclasses.replace(
            stage1, training=dataclasses.replace(stage1.training, steps=steps, warmup_steps=warmup)
        )
    codec = codecs.load(MODELS / "codec", device)
    tokens, validation = (read_tokens(TOKENS, split, codec.fingerprint()) for split in ("stage1", "val"))
    hear, heard_with = _judged(config, codec, device, tried.HEARD)
    world = tried.World(
        config.model,
        stage1,
        codec.tables().to("cpu"),
        tokens,
        validation,
        places.made_with("stage1", "val"),
        places.num_frames(config.filter.score.crop_seconds, codec),
        device,
        hear,
        heard_with,
        ("is", "sample_seconds") if hear else (),
        _listening(config, codec, device) if hear else None,
    )
    about = {"scale": config.scale, "steps": stage1.training.steps, "batch": stage1.training.batch_size}
    about |= {"pairs": len(tokens), "held-out pairs": len(validation), "codebooks": world.tables.num_codebooks}
    return world, about


@_at_work()
def alignment_claims(seeds: Sequence[int], config: Config, steps: int | None = None, only: Sequence[str] = ()) -> None:
    """The paper's claims about alignment: aligns and judges each arm at each seed; reports/alignment.json and .md.

    Like `claims`, from the stage-1 model of the pipeline. Raises ValueError where there are no judges.
    """
    import dataclasses

    from siren.align import anticausal
    from siren.encode.tokens import read_tokens
    from siren.evaluate import alignment as tried
    from siren.evaluate import claims
    from siren.generate.bundle import load_model
    from siren.hashing import item_seed
    from siren.networks import codec as codecs

    device, folders, settings = places.device(), places.stage1_folders(config), config.align
    if steps is not None:
        settings = dataclasses.replace(settings, steps=steps, warmup_steps=min(settings.warmup_steps, steps - 1))
    codec = codecs.load(MODELS / "codec", device)
    prompts = read_tokens(TOKENS, "rl", codec.fingerprint())
    frames = places.num_frames(config.filter.score.crop_seconds, codec)
    hear, heard_with = _judged(config, codec, device, tried.MEASURES, ("imagebind", "clap"))
    if hear is None:
        raise ValueError("alignment cannot be compared without judges; run `dvc repro judge clap imagebind`")

    def align(model: Any, arm: Any, seed: int, log: Any, checkpoint: Any) -> list[int]:
        reward = build_reward(config, codec, model, prompts, device)
        own = item_seed(seed, "align")  # the seed that the stage takes
        return anticausal.align(model, prompts, codec.decode, reward, arm, frames, own, log, checkpoint, device)

    world = tried.World(
        settings,
        lambda: load_model(folders, codec.fingerprint()).to(device).eval(),
        align,
        hear,
        {
            **places.made_with("rl"),
            "stage1": places.hashes(folders),
            "rewards": places.hashes([MODELS / "imagebind", MODELS / "clap"]),
        },
        heard_with,
        ("is", "sample_seconds"),
        _listening(config, codec, device),
    )
    about = {"scale": config.scale, "steps": settings.steps, "prompts": settings.prompts_per_step}
    about |= {"rollouts of each": settings.group_size, "learning rate": settings.learning_rate}
    results = tried.run(only or tried.NEEDED, seeds, world, CLAIMS, tried.NEEDED)
    title = "The paper's claims about alignment, tried here"
    _write_claims("alignment", results, lambda found: claims.report(found, about, tried.CLAIMS, title))


def _write_claims(name: str, results: Any, report: Callable[[list[Any]], dict[str, Any]]) -> None:
    """The report so far after each result: a run that is stopped leaves what it has."""
    from siren.evaluate.claims import markdown

    page, found = REPORTS / f"{name}.md", []
    for result in results:
        found.append(result)
        made = report(found)
        places.write_report(f"{name}.json", made)
        page.write_text(markdown(made), encoding="utf-8")
    print(page.read_text(encoding="utf-8"))


def _judged(
    config: Config, codec: Any, device: str, wanted: Sequence[str], by_prompt: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """How `claims` makes and judges a model's clips, and all that this depends on; (None, {}) without judges.

    Measures `by_prompt` come prompt by prompt as well.
    """
    from time import perf_counter

    from siren.encode.tokens import read_tokens
    from siren.evaluate import goals
    from siren.generate.offline import sample_tokens
    from siren.hashing import item_seed

    folders = [*(MODELS / "judge" / role for role in EARS.values()), MODELS / "clap", MODELS / "imagebind"]
    if absent := [folder for folder in folders if not (folder / "config.json").is_file()]:
        print(f"claims: no {absent[0]}; losses are compared, sounds are not")
        return None, {}
    prompts = read_tokens(TOKENS, "test", codec.fingerprint())
    frames, judge = places.num_frames(config.audio.segment_seconds, codec), _bench(config, prompts, device)

    def hear(name: str, model: Any, seed: int) -> dict[str, Any]:
        begin, seeds = perf_counter(), [item_seed(seed, "sample", prompt, 0) for prompt in prompts.ids]
        wavs = sample_tokens(model, codec, prompts, seeds, frames, config.evaluate.sample, f"{name} {seed}")
        spent, (figures, clips) = perf_counter() - begin, judge(wavs, seed)
        entries = {m: goals.find(figures, m) for m in wanted}
        heard: dict[str, Any] = {m: entry["value"] for m, entry in entries.items() if entry is not None}
        heard["sample_seconds"] = round(spent / len(wavs), 4)
        return heard | ({"prompts": {m: [clip[m] for clip in clips] for m in by_prompt}} if by_prompt else {})

    sampling = to_dict(config.evaluate.sample.sampling)
    return hear, {"sampling": sampling, "networks": places.hashes(folders), **places.made_with("test")}


def _listening(config: Config, codec: Any, device: str) -> Any:
    """How an arm leaves clips of a few test prompts at the first seed beside its result, for the paper's page.

    They are the clips that were judged: same prompts, same seeds. The result names their folder below `CLAIMS`.
    """
    import numpy as np

    from siren import audio
    from siren.encode.tokens import read_tokens
    from siren.evaluate import inside
    from siren.evaluate.players import choose
    from siren.generate.offline import sample_tokens
    from siren.hashing import digest, item_seed

    tokens, settings = read_tokens(TOKENS, "test", codec.fingerprint()), config.evaluate.sample
    frames = places.num_frames(config.audio.segment_seconds, codec)
    chosen = choose(reading.prompt_rows(tokens), HEARD_BY_PEOPLE)
    prompts = tokens.take([list(tokens.ids).index(prompt["id"]) for prompt in chosen])
    made_with = {
        "sampling": to_dict(settings.sampling),
        "frames": frames,
        "prompts": chosen,
        **places.made_with("test"),
    }

    def listen(model: Callable[[], Any], seed: int, folder: Path) -> dict[str, str]:
        if seed != inside.SEED:
            return {}
        clips = folder / f"clips-{digest(made_with)}"
        listing = clips / "prompts.json"  # written last
        if not listing.is_file():
            seeds = [item_seed(seed, "sample", name, 0) for name in prompts.ids]
            wavs = sample_tokens(model().to(device), codec, prompts, seeds, frames, settings, "to listen to")
            for name, wav in zip(prompts.ids, wavs, strict=True):
                audio.write(clips / f"{name}.wav", np.clip(wav, -1, 1), codec.sample_rate)
            listing.write_text(json.dumps(chosen, indent=1) + "\n")
        return {"clips": str(clips.relative_to(CLAIMS))}

    return listen


def _bench(config: Config, prompts: Any, device: str) -> Callable[[Any, int], tuple[dict[str, Any], list[Any]]]:
    """A function that judges clips of the test prompts (clips, seed): their figures, and a row for each clip."""
    import dataclasses

    from siren.evaluate.evaluate import evaluate as measure
    from siren.networks import clap, imagebind, judge

    real, rows = reading.recordings(prompts.ids), reading.prompt_rows(prompts)
    judges = {kind: judge.load(MODELS / "judge" / role, device) for kind, role in EARS.items()}
    others = clap.load(MODELS / "clap", device), imagebind.load(MODELS / "imagebind", device)
    settings = dataclasses.replace(config.evaluate.evaluate, bootstrap=1)  # the intervals are over seeds or prompts
    rate, named = config.audio.sample_rate, places.network_names(config)

    def judged(wavs: Any, seed: int) -> tuple[dict[str, Any], list[Any]]:
        found = measure({"stage1": wavs}, rows, real, judges, *others, settings, seed, rate, device, named)
        return found.metrics["arms"]["stage1"], [clip for clip in found.clips if clip["arm"] == "stage1"]

    return judged


def paper(
    run: bool, seeds: Sequence[int], config: Config, steps: int | None = None, candidates: int = 8, clips: int = 4
) -> Path:
    """The paper's tables and figures beside what has been run here: reports/paper.html.

    With `run`, what is missing is run first, cheapest first, and the page is written again after each: what is finished
    stays in .siren/claims. `steps` are those of the arms' trainings, `clips` how many one-event prompts are heard.
    """
    if run:
        for experiment in (
            lambda: best_of(candidates, config),
            lambda: alignment_claims(seeds, config),
            lambda: inside(steps, config),
            lambda: claims(seeds, config, steps),
        ):
            experiment()
            _write_paper(config, clips)
    return _write_paper(config, clips)


def _write_paper(config: Config, clips: int) -> Path:
    """The page, from the records that there are."""
    from siren import audio
    from siren.evaluate import paper as pages
    from siren.evaluate.players import choose

    def read(name: str) -> Any:
        path = REPORTS / name
        return json.loads(path.read_text()) if path.is_file() else None

    names = ("metrics", "claims", "alignment", "inside", "best_of")
    records = {name: read(f"{name}.json") for name in names} | {"analysis": read("analysis/analysis.json")}
    systems = {path.stem: json.loads(path.read_text()) for path in sorted((REPORTS / "systems").glob("*.json"))}
    codebooks = len(records["analysis"]["usage"]["used"]) if records["analysis"] else None
    codebooks = codebooks or (records["claims"] or {"about": {}})["about"].get("codebooks")
    sounds, chosen, rate = {}, [], config.audio.sample_rate
    listing = SAMPLES / "samples.json"
    if listing.is_file():
        said = json.loads(listing.read_text())
        chosen = choose(said["prompts"], clips)
        sounds = {
            arm: {p["id"]: audio.read(SAMPLES / arm / f"{p['id']}.wav")[0][0] for p in chosen}
            for arm in pages.PLAYED
            if arm in said["arms"]
        }
        sounds["real"] = _real(chosen)
    kept = {name: _kept_clips(records[name]) for name in ("claims", "alignment")}
    page = pages.Found(
        config.scale,
        rate,
        **records,
        systems=systems,
        prompts=chosen,
        sounds=sounds,
        arms={name: (prompts, own | {"real": _real(prompts)}) for name, (prompts, own) in kept.items() if own},
        num_codebooks=codebooks,
    )
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / "paper.html").write_text(pages.render(page), encoding="utf-8")
    return REPORTS / "paper.html"


def _real(prompts: Sequence[Any]) -> dict[str, Any]:
    """The recordings of some prompts, by id."""
    ids = [prompt["id"] for prompt in prompts]
    return dict(zip(ids, reading.recordings(ids), strict=True))


def _kept_clips(record: Any) -> tuple[list[Any], dict[str, dict[str, Any]]]:
    """The prompts and the clips that arms left to listen to, by arm and prompt."""
    from siren import audio

    prompts: dict[str, Any] = {}
    sounds: dict[str, dict[str, Any]] = {}
    for row in (record or {"results": []})["results"]:
        folder = CLAIMS / row.get("clips", "")
        if "clips" in row and (folder / "prompts.json").is_file():
            own = {prompt["id"]: prompt for prompt in json.loads((folder / "prompts.json").read_text())}
            prompts |= own
            sounds[row["arm"]] = {name: audio.read(folder / f"{name}.wav")[0][0] for name in own}
    return list(prompts.values()), sounds


@_at_work()
def best_of(count: int, config: Config) -> None:
    """What the aligned model gains by making up to `count` clips and keeping CLAP's choice, and its cost: for `paper`.

    Writes reports/best_of.json; finished candidates are kept in .siren/claims.
    """
    from time import perf_counter

    from siren.encode.tokens import read_tokens
    from siren.evaluate import best_of as curves
    from siren.evaluate.claims import kept
    from siren.generate.bundle import load_model
    from siren.generate.offline import best_by_clap, sample_tokens
    from siren.hashing import digest, item_seed
    from siren.networks import clap as claps
    from siren.networks import codec as codecs

    device, settings, folders = places.device(), config.evaluate.sample, places.aligned_folders(config)
    codec, clap = codecs.load(MODELS / "codec", device), claps.load(MODELS / "clap", device)
    prompts = read_tokens(TOKENS, "test", codec.fingerprint())
    model, judge = load_model(folders, codec.fingerprint()).to(device), _bench(config, prompts, device)
    frames = places.num_frames(config.audio.segment_seconds, codec)
    inputs = {"sampling": to_dict(settings.sampling), "model": places.hashes(folders), "seed": config.seed}
    judges = [MODELS / "judge" / role for role in EARS.values()]
    inputs |= {"networks": places.hashes([MODELS / "clap", MODELS / "imagebind", *judges]), **places.made_with("test")}

    def take(candidate: int) -> dict[str, Any]:
        seeds = [item_seed(config.seed, "sample", name, candidate) for name in prompts.ids]  # those of the stage
        begin = perf_counter()
        wavs = sample_tokens(model, codec, prompts, seeds, frames, settings, f"candidate {candidate}")
        sampled = perf_counter()
        best_by_clap(clap, [wavs], prompts.captions, settings.batch_size)
        seconds = {"sample": (sampled - begin) / len(wavs), "rank": (perf_counter() - sampled) / len(wavs)}
        _, clips = judge(wavs, config.seed)
        return {"seconds": seconds, **{m: [clip[m] for clip in clips] for m in curves.MEASURES}}

    folder = CLAIMS / f"best-of-{digest(inputs)}"
    takes = [kept(folder / f"{candidate}.json", partial(take, candidate)) for candidate in range(count)]
    named = {**places.network_names(config), "scale": config.scale, "device": _machine(device)}
    places.write_report("best_of.json", curves.report(takes, config.evaluate.evaluate.bootstrap, config.seed) | named)


def _machine(device: str) -> str:
    """What seconds were measured on."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


@_at_work()
def inside(steps: int | None, config: Config) -> None:
    """Gradients, losses and task vectors of trained arms: reports/inside.json. For `paper`; see `evaluate.inside`."""
    from siren.evaluate import inside as look

    world, about = _arms(config, steps)
    places.write_report("inside.json", {"about": about, **look.look(world, CLAIMS)})
