"""The pipeline on one page, in order: each stage reads its files, calls the library, writes its files and logs.

Only this module knows paths, and they are those of `dvc.yaml`. A stage takes the settings and nothing else; its name
is the DVC stage, the CLI verb, the Prefect task and the MLflow run. Heavy imports are inside the stages, so that
each process loads only what it uses.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from siren import tracking
from siren.config import Config, Sampling, flatten, to_dict

CLIPS = Path("data/clips")
SEGMENTS = Path("data/segments")
CAPTIONS = Path("data/captions")
SCORES = Path("data/scores")
SPLITS = Path("data/splits")
TOKENS = Path("data/tokens")
MODELS = Path("models")
SAMPLES = Path("outputs/samples")
REPORTS = Path("reports")
NETWORKS = ("codec", "clap", "imagebind", "judge")  # each a folder of models/ and a file of reports/networks/
EARS = {"cnn14": "panns", "vggish": "vggish"}  # the evaluation's judges, by their folders in models/judge
CLAIMS = Path(".siren/claims")  # what the experiments of the paper have finished
CHECKPOINTS = Path(".siren/checkpoints")  # outside every output, so that DVC leaves them to a stage it repeats
PIECES = Path(".siren/pieces")  # likewise
SHARDS_AT_ONCE = 2  # of segments, 256 MB of sound: what one worker captions or scores between two reports
HASHES = Path(".siren/hashes.json")
DOWNLOADS = Path(".siren/downloads")  # likewise; may be a link to a larger disk


def fetch(config: Config) -> None:
    """Sources to clips: files, one manifest, and what was left out."""
    from siren import engine, shards
    from siren.collect import sources
    from siren.collect.fetch.download import Downloader

    settings, licences = config.collect.fetch, config.collect.licences
    with (
        tracking.stage("fetch", config, sections=("seed", "audio", "collect.fetch", "collect.licences")) as run,
        Downloader(DOWNLOADS, settings.download) as downloader,
    ):
        clips, quarantine, total = sources.collect(
            settings.sources, CLIPS, config.audio, config.seed, downloader, licences, engine.chosen()
        )
        shards.write_table(CLIPS / "clips.parquet", clips)
        counts = {"in": total, "out": clips.num_rows, "quarantined": len(quarantine)}
        run.summary(_account("fetch", CLIPS, counts, quarantine))
        if not clips.num_rows:
            why = quarantine[0]["detail"] if quarantine else "the sources are empty"
            raise ValueError(f"no clip is left, e.g. because: {why}; see {CLIPS}/quarantine.parquet")


def segment(config: Config) -> None:
    """Clips to mono segments of one rate and length, with something to hear in them."""
    import pyarrow.parquet as pq

    from siren import engine
    from siren.collect import segment as segments

    with tracking.stage("segment", config, sections=("audio", "collect.segment")) as run:
        clips = pq.read_table(CLIPS / "clips.parquet")
        settings, where = config.collect.segment, engine.chosen()
        work = _pieces("segment", [CLIPS / "clips.parquet"], settings, config.audio)
        quarantine, counts = segments.segment(clips, CLIPS, SEGMENTS, settings, config.audio, work, where)
        fixes = {name: counts.pop(name) for name in list(counts) if name.startswith("fix/")}
        run.summary(_account("segment", SEGMENTS, counts, quarantine) | fixes)
        _made("segment")


def caption(config: Config) -> None:
    """One refined caption for each segment."""
    from siren import engine, shards

    with tracking.stage("caption", config, sections=("seed", "audio.sample_rate", "filter.caption")) as run:
        captioning = _captioning(config)  # nothing is loaded before a segment needs it
        settings, columns = [config.seed, config.audio.sample_rate, config.filter.caption], captioning.columns
        where = engine.LOCAL if captioning.only_asks else engine.chosen()
        made = partial(_captioning, config)
        table, notes = _by_shard("caption", made, columns, [], settings, captioning.loads, where)
        made_with = {"made_with": json.dumps(found)} if (found := captioning.provenance()) else None
        shards.write_table(CAPTIONS / "captions.parquet", table, made_with)
        quarantine = [row for rows, _ in notes for row in rows]
        counts = {"in": table.num_rows + len(quarantine), "out": table.num_rows, "quarantined": len(quarantine)}
        used = sum((Counter(rules) for _, rules in notes), Counter[str]())
        counts |= {f"rule/{name}": count for name, count in used.items()}
        run.summary(_account("caption", CAPTIONS, counts, quarantine))
        _made("caption")


def codec(config: Config) -> None:
    """The RVQ codec: load the weights that the settings name, or train one on the segments; models/codec."""
    import torch

    from siren.networks import codec as codecs
    from siren.randomness import item_seed
    from siren.train.codec import quality, reconstructions, train_codec

    network = config.networks.codec
    with tracking.stage("codec", config, sections=("seed", "audio", "networks.codec")) as run:
        device, seed = _device(), item_seed(config.seed, "codec")
        training, validation = _waveforms("train"), _waveforms("val")
        checkpoint = None
        torch.manual_seed(seed)
        if network.weights is not None:
            made, extra = codecs.load_weights(network, config.audio), codecs.extra(network.weights)
        else:
            assert network.training is not None  # config.Network holds one of the two
            made, extra = codecs.build(network, config.audio), {"recipe": to_dict(network.training), "seed": seed}
            made_with = [_hash(path) for path in sorted(SEGMENTS.glob("segments-*.parquet"))]
            checkpoint = _checkpoint("codec", run=run, network=network, audio=config.audio, seed=seed, data=made_with)
            train_codec(made, training, network.training, seed, run.log, device, checkpoint)
        report = quality(made, validation, device)
        untrained = quality(codecs.untrained(made, seed), validation, device)
        report["untrained"] = {name: untrained[name] for name in ("mel_distance", "si_sdr")}
        codecs.save(MODELS / "codec", made, extra | {"quality": report})
        if checkpoint:
            checkpoint.clear()
        _write_report("networks/codec.json", report)
        run.summary(flatten(report))
        for index, pair in enumerate(reconstructions(made, validation[:2], device)):
            for name, wav in zip(("real", "decoded"), pair, strict=True):
                run.audio(f"held-out-{index}/{name}", wav, made.sample_rate)


def clap(config: Config) -> None:
    """The text-audio encoder that conditions and scores: loaded, or trained on the segments; models/clap."""
    from siren.networks import clap as claps

    with tracking.stage("clap", config, sections=("seed", "audio", "networks.clap")) as run:
        _text_audio("clap", config, claps, run)


def imagebind(config: Config) -> None:
    """The reward: loaded, or trained on the segments from another seed than CLAP's; models/imagebind."""
    from siren.networks import imagebind as rewards

    with tracking.stage("imagebind", config, sections=("seed", "audio", "networks.imagebind")) as run:
        _text_audio("imagebind", config, rewards, run)


def judge(config: Config) -> None:
    """The evaluating networks: load the weights that the settings name, or train them on the segments; models/judge."""
    from siren.networks import judge as judges
    from siren.randomness import item_seed
    from siren.train.judge import quality, train_judge

    with tracking.stage("judge", config, sections=("seed", "audio", "networks.judge")) as run:
        device, report = _device(), {}
        validation = _labelled("val", config, judges.SAMPLE_RATE)
        for name in judges.ROLES:
            network, seed = judges.checked(getattr(config.networks.judge, name), name), item_seed(config.seed, name)
            checkpoint = None
            if network.weights is not None:
                made, extra = judges.obtain(network, device), judges.extra(network.weights)
            else:
                assert network.training is not None  # config.Network holds one of the two
                wavs, labels = _labelled("train", config, judges.SAMPLE_RATE)
                made_with = [_hash(path) for path in sorted(SEGMENTS.glob("segments-*.parquet"))]
                checkpoint = _checkpoint(f"judge-{name}", run=run, network=network, seed=seed, data=made_with)
                made = judges.build(network, sorted({label for clip in labels for label in clip}), seed)
                log = _prefixed(run.log, name)
                train_judge(made, wavs, labels, network.training, seed, log, device, checkpoint)
                extra = {"recipe": to_dict(network.training), "seed": seed, "licence": "Apache-2.0"}
            report[name] = quality(made, *validation, device)
            judges.save(MODELS / "judge" / name, made, extra | {"quality": report[name]})
            if checkpoint:
                checkpoint.clear()
        _write_report("networks/judge.json", report)
        run.summary({k: v for k, v in flatten(report).items() if v is not None})


def score(config: Config) -> None:
    """CLAP cosine of every segment and of every crop with its caption."""
    from siren import shards

    with tracking.stage("score", config, sections=("audio", "filter.score")) as run:
        columns = ["id", "num_samples", "split", "pcm"]
        made_with, settings = [CAPTIONS / "captions.parquet", *_saved("clap")], [config.audio, config.filter.score]
        table, notes = _by_shard("score", partial(_scoring, config), columns, made_with, settings, network=True)
        shards.write_table(SCORES / "scores.parquet", table)
        quarantine = [row for (rows,) in notes for row in rows]
        counts = {
            "in": shards.num_rows(CAPTIONS / "captions.parquet"),
            "out": table.num_rows,
            "quarantined": len(quarantine),
        }
        run.summary(_account("score", SCORES, counts, quarantine))
        _made("score")


def select(config: Config) -> None:
    """Scores to splits: stage-1 corpus, alignment prompts, validation, test; and what other thresholds would keep."""
    import pyarrow.parquet as pq
    from pyarrow import csv

    from siren import shards
    from siren.filter import select as selection

    with tracking.stage("select", config, sections=("seed", "audio.sample_rate", "filter.select")) as run:
        columns = ["id", "labels", "relation", "recording_id", "split", "source", "num_samples"]
        segments = shards.read_shards(SEGMENTS, "segments", columns)
        scores, settings = pq.read_table(SCORES / "scores.parquet"), config.filter.select
        swept = selection.sweep(segments, scores, settings.min_crop_score, config.audio.sample_rate)
        SPLITS.mkdir(parents=True, exist_ok=True)
        csv.write_csv(swept, SPLITS / "sweep.csv")  # before what may fail: it says which threshold would do
        splits, funnel = selection.select(segments, scores, settings, config.seed)
        for name, table in splits.items():
            shards.write_table(SPLITS / f"{name}.parquet", table)
        (SPLITS / "summary.json").write_text(json.dumps(funnel, indent=1) + "\n")
        run.summary({name: float(count) for name, count in funnel.items()})
        print("select: " + ", ".join(f"{name} {count}" for name, count in funnel.items()))


def validate(config: Config) -> None:
    """The gate: every table against its suite; Data Docs. A demand that fails stops the pipeline."""
    import pyarrow.parquet as pq

    from siren import shards
    from siren.filter import validate as gate

    with tracking.stage("validate", config, sections=("filter.validate",)) as run:
        stages = {"fetch": CLIPS, "segment": SEGMENTS, "caption": CAPTIONS, "score": SCORES}
        corpus = gate.Corpus(
            clips=pq.read_table(CLIPS / "clips.parquet"),
            segments=shards.read_shards(
                SEGMENTS, "segments", ["id", "clip_id", "recording_id", "num_samples", "snr_db", "split"]
            ),
            captions=pq.read_table(CAPTIONS / "captions.parquet"),
            scores=pq.read_table(SCORES / "scores.parquet"),
            splits={path.stem: pq.read_table(path) for path in sorted(SPLITS.glob("*.parquet"))},
            quarantined={name: shards.read_quarantine(folder) for name, folder in stages.items()},
            fetched=json.loads((CLIPS / "summary.json").read_text())["in"],
        )
        report = gate.validate(corpus, config)
        gate.write(report, REPORTS / "data")
        failing = sum(not check.holds for check in report.checks)
        run.summary({"demands": len(report.checks), "failing": failing})
        run.artifact(REPORTS / "data")
        print(f"validate: {len(report.checks)} demands on {len(report.results)} tables, {failing} failing")
        gate.gate(report)


def tokenize(config: Config) -> None:
    """Segments and captions to token shards: codes, text states, crops."""
    import pyarrow.parquet as pq

    from siren import engine
    from siren.encode import tokenize as tokens

    with tracking.stage("tokenize", config, sections=("encode.tokenize",)) as run:
        splits = {path.stem: pq.read_table(path) for path in sorted(SPLITS.glob("*.parquet"))}
        settings, rate, where = config.encode.tokenize, config.audio.sample_rate, engine.chosen()
        made_with = [*_segments(), *sorted(SPLITS.glob("*.parquet")), *_saved("codec", "clap")]
        work = _pieces("tokenize", made_with, settings)
        made = tokens.tokenize(
            _codec, _clap, SEGMENTS, splits, TOKENS, work, rate, settings.batch_size, settings.shard_rows, where
        )
        run.summary({f"pairs/{split}": count for split, count in made.items()})
        _hold_tokens(splits, config, run)
        _made("tokenize")
        pairs = sum(table.num_rows for table in splits.values())
        print(f"tokenize: {pairs} in, {sum(made.values())} out ({', '.join(f'{k} {v}' for k, v in made.items())})")


def _hold_tokens(splits: dict[str, Any], config: Config, run: tracking.Run) -> None:
    """The gate once more, for the token shards. Machines that only train have no Great Expectations, and say so."""
    from importlib.util import find_spec
    from tempfile import TemporaryDirectory

    from siren import shards
    from siren.filter import validate as gate
    from siren.progress import notice

    if find_spec("great_expectations") is None:
        notice("tokenize: the shards are not held against their suite; install great_expectations for that")
        return
    columns = ["id", "caption", "codes", "num_frames", "text", "text_length", "crop_offsets"]
    tokens = {name: shards.read_shards(TOKENS, name, columns) for name in splits}
    report = gate.hold_tokens(tokens, shards.metadata(TOKENS, next(iter(splits))), splits, config)
    with TemporaryDirectory() as folder:
        gate.write(report, Path(folder) / "gate")
        run.artifact(Path(folder) / "gate")
    run.summary({"demands": len(report.checks), "failing": sum(not check.holds for check in report.checks)})
    gate.gate(report)


def stage1(config: Config, k: int) -> None:
    """Train transformer K alone: tokens to models/stage1/K."""
    from siren import engine
    from siren.train import distributed

    if k not in config.model.transformers:
        raise ValueError(f"there is no transformer {k}; the model has {len(config.model.transformers)}, from 0")
    where = engine.chosen()
    if where.name == "ray":  # a job of its own: stages that run at the same time share the cluster
        with tracking.stage(f"stage1@{k}", config, sections=("seed", "model", "train.stage1")) as run:
            work = partial(_stage1_elsewhere, config, k, run.folder.resolve())
            where.train(f"stage1-{k}", work, distributed.processes())
        return
    if distributed.launch(["stage1", str(k)]):
        return
    with distributed.join() as ranks:
        if ranks.rank:
            _stage1(config, k, ranks, None)
        else:
            with tracking.stage(f"stage1@{k}", config, sections=("seed", "model", "train.stage1")) as run:
                _stage1(config, k, ranks, run)


def _stage1_elsewhere(config: Config, k: int, record: Path) -> None:
    """The training on a node of a cluster: it writes into the record that the driver keeps."""
    from siren.train import distributed

    with distributed.join() as ranks, nullcontext() if ranks.rank else tracking.Run.reopen(record) as run:
        _stage1(config, k, ranks, run)


def _stage1(config: Config, k: int, ranks: Any, run: tracking.Run | None) -> None:
    """What each process of the training does; the one that has a run keeps the record and writes the result."""
    import torch

    from siren.encode.tokens import read_tokens
    from siren.generate.bundle import save_transformer
    from siren.model.transformer import ResidualTransformer
    from siren.networks import codec as codecs
    from siren.randomness import item_seed
    from siren.train.loop import Curve
    from siren.train.stage1 import train_stage1

    codec, settings = codecs.load(MODELS / "codec"), config.train.stage1
    tokens, validation = (read_tokens(TOKENS, split, codec.fingerprint()) for split in ("stage1", "val"))
    seed, crop = item_seed(config.seed, f"stage1@{k}"), _frames(config.filter.score.crop_seconds, codec)
    torch.manual_seed(seed)
    transformer = ResidualTransformer(config.model, codec.tables(), tokens.text_width, k)
    made_with = _made_with("stage1", "val")
    identity: dict[str, Any] = {"model": config.model, "stage1": settings, "crop_frames": crop}
    checkpoint = _checkpoint(f"stage1-{k}", settings.keep_checkpoints, run=run, **identity, seed=seed, data=made_with)
    curve = Curve(run.log, checkpoint.folder) if run else None
    log = curve or (lambda step, metrics: None)
    figures = train_stage1(transformer, tokens, validation, settings, crop, seed, log, checkpoint, _device(), ranks)
    if run and curve:
        save_transformer(MODELS / "stage1" / str(k), transformer, made_with)
        curve.write(REPORTS / "curves" / f"stage1-{k}.csv")
        checkpoint.clear()
        run.summary(figures)


def align(config: Config) -> None:
    """Align the first transformer to the others' preferences: stage 1 and the reward to models/aligned."""
    from siren.train import distributed

    if distributed.launch(["align"]):
        return
    with distributed.join() as ranks:
        if ranks.rank:
            _align(config, ranks, None)
        else:
            with tracking.stage("align", config, sections=("seed", "align")) as run:
                _align(config, ranks, run)


def _align(config: Config, ranks: Any, run: tracking.Run | None) -> None:
    """What each process of the alignment does; the one that has a run keeps the record and writes the result."""
    from siren.align import anticausal
    from siren.encode.tokens import read_tokens
    from siren.generate.bundle import load_model, save_transformer
    from siren.networks import codec as codecs
    from siren.randomness import item_seed
    from siren.train.loop import Curve

    device, settings, folders = _device(), config.align, _stage1_folders(config)
    codec = codecs.load(MODELS / "codec", device)
    prompts = read_tokens(TOKENS, "rl", codec.fingerprint())
    model = load_model(folders, codec.fingerprint()).to(device)
    made_with, seed = _made_with("rl"), item_seed(config.seed, "align")
    parts: dict[str, Any] = {"stage1": _hashes(folders), "rewards": _hashes([MODELS / "imagebind", MODELS / "clap"])}
    checkpoint = _checkpoint("align", run=run, align=settings, seed=config.seed, data=made_with, **parts)
    curve = Curve(run.log, checkpoint.folder) if run else None
    frames = _frames(config.filter.score.crop_seconds, codec)
    moved = anticausal.align(
        model,
        prompts,
        codec.decode,
        _reward(config, codec, model, prompts, device),
        settings,
        frames,
        seed,
        curve or (lambda step, metrics: None),
        checkpoint,
        device,
        ranks,
        _look(config, codec, model, frames, seed, run, device) if run and settings.watch.every else None,
    )
    if run and curve:
        for k in moved:
            save_transformer(MODELS / "aligned" / str(k), model[k], made_with)
        curve.write(REPORTS / "curves" / "align.csv")
        checkpoint.clear()


def _reward(config: Config, codec: Any, model: Any, prompts: Any, device: str) -> Any:
    """What `align.rewards` asks for, of the networks of this pipeline."""
    import torch

    from siren.align import rewards
    from siren.networks import clap, imagebind

    weights = {name: weight for name, weight in to_dict(config.align.rewards).items() if weight}
    judge = imagebind.load(MODELS / "imagebind", device) if {"imagebind", "t5"} & set(weights) else None

    def t5() -> Any:
        from siren.networks.t5 import T5Alignment

        assert config.align.t5 is not None  # config.Align holds it
        assert judge is not None
        real, size = torch.from_numpy(_recordings(list(prompts.ids))).to(device), config.evaluate.evaluate.batch_size
        with torch.no_grad():
            heard = torch.cat([judge.embed_audio(part) for part in real.split(size)])
        return T5Alignment(config.align.t5, judge).to(device).fit(heard, list(prompts.captions))

    made: dict[str, Callable[[], Any]] = {
        "imagebind": lambda: rewards.cosine(judge),
        "clap": lambda: rewards.cosine(clap.load(MODELS / "clap", device)),
        "t5": lambda: rewards.cosine(t5()),
        "agreement": lambda: rewards.agreement(codec.tables().latents().detach().to(device), model[0].group),
    }
    return rewards.weighted({name: made[name]() for name in weights}, weights)


def _look(config: Config, codec: Any, model: Any, frames: int, seed: int, run: tracking.Run, device: str) -> Any:
    """How the alignment watches itself on held-out prompts: see `siren.evaluate.watching`."""
    from siren.encode.tokens import read_tokens
    from siren.evaluate import watching

    held_out = read_tokens(TOKENS, "val", codec.fingerprint())
    prompts = held_out.take(watching.spread(len(held_out), config.align.watch.prompts))

    def keep(name: str, wav: Any, step: int) -> None:
        run.audio(name, wav, codec.sample_rate, step)

    real = _recordings(prompts.ids)
    return watching.watcher(model, codec, prompts, real, _ears(config, device), config.align, frames, seed, keep)


def _ears(config: Config, device: str) -> Any:
    """Every network that judges clips."""
    from siren.evaluate.hearing import Ears
    from siren.networks import clap, imagebind, judge

    judges = {kind: judge.load(MODELS / "judge" / role, device) for kind, role in EARS.items()}
    others = clap.load(MODELS / "clap", device), imagebind.load(MODELS / "imagebind", device)
    rate, batch = config.audio.sample_rate, config.evaluate.evaluate.batch_size
    return Ears(judges["cnn14"], judges["vggish"], *others, rate, batch, device)


def _aligned_folders(config: Config) -> list[Path]:
    """All transformers of the aligned model: those that alignment moved, and stage 1's. ValueError for none of them."""
    moved = {path.parent.name: path.parent for path in (MODELS / "aligned").glob("*/model.safetensors")}
    if not moved:
        raise ValueError(f"no aligned transformer in {MODELS / 'aligned'}; run `siren align`")
    return [moved.get(folder.name, folder) for folder in _stage1_folders(config)]


def sample(config: Config) -> None:
    """Test prompts to sound, for the untrained model, stage 1 and the aligned model: outputs/samples."""
    from siren.encode.tokens import read_tokens
    from siren.generate.bundle import load_model
    from siren.generate.offline import best_by_clap, sample_tokens
    from siren.model.siren import Siren
    from siren.networks import clap as claps
    from siren.networks import codec as codecs
    from siren.randomness import item_seed

    settings = config.evaluate.sample
    with tracking.stage("sample", config, sections=("seed", "evaluate.sample")) as run:
        device = _device()
        codec = codecs.load(MODELS / "codec", device)
        prompts = read_tokens(TOKENS, "test", codec.fingerprint())
        folders, frames = _stage1_folders(config), _frames(config.audio.segment_seconds, codec)
        models = {
            "untrained": Siren([_untrained(config, codec, prompts.text_width, k) for k in config.model.transformers]),
            "stage1": load_model(folders, codec.fingerprint()),
            "aligned": load_model(_aligned_folders(config), codec.fingerprint()),
        }

        def clips(arm: str, label: str, candidate: int = 0) -> Any:
            # One seed for a prompt in every arm: differences between arms are differences between models.
            seeds = [item_seed(config.seed, "sample", name, candidate) for name in prompts.ids]
            return sample_tokens(models[arm].to(device), codec, prompts, seeds, frames, settings, label)

        arms = {arm: clips(arm, arm) for arm in models}
        if settings.candidates > 1:
            others = [clips("aligned", f"candidate {c}", c) for c in range(1, settings.candidates)]
            clap, batch = claps.load(MODELS / "clap", device), settings.batch_size
            arms["reranked"] = best_by_clap(clap, [arms["aligned"], *others], prompts.captions, batch)
        _write_samples(config, prompts, arms, codec.sample_rate)
        for arm, wavs in arms.items():
            run.audio(f"{arm}/{prompts.captions[0]}", wavs[0], codec.sample_rate)
        run.summary({"clips": len(prompts) * len(arms)})


def _write_samples(config: Config, prompts: Any, arms: dict[str, Any], sample_rate: int) -> None:
    """One WAV for each arm and prompt, and the list of them."""
    from siren.audio import write

    for arm, wavs in arms.items():
        for name, wav in zip(prompts.ids, wavs, strict=True):
            write(SAMPLES / arm / f"{name}.wav", wav, sample_rate)
    settings = config.evaluate.sample
    listing = {"arms": list(arms), "sampling": to_dict(settings.sampling), "candidates": settings.candidates}
    (SAMPLES / "samples.json").write_text(json.dumps({**listing, "prompts": _rows(prompts)}, indent=1) + "\n")


def _rows(prompts: Any) -> list[dict[str, Any]]:
    """Prompts of token shards as the evaluation takes them."""
    columns = zip(prompts.ids, prompts.captions, prompts.labels, prompts.relations, strict=True)
    return [{"id": i, "caption": c, "labels": labels, "relation": r} for i, c, labels, r in columns]


def analyze(config: Config) -> None:
    """The paper's properties of codec, tokens and stage 1: reports/analysis."""
    from siren.encode.tokens import read_tokens
    from siren.evaluate import analyze as properties
    from siren.evaluate import charts, figures
    from siren.evaluate.records import Records
    from siren.networks import codec as codecs

    with tracking.stage("analyze", config, sections=("seed",)) as run:
        codec, records = codecs.load(MODELS / "codec"), Records()
        train, test = (read_tokens(TOKENS, split, codec.fingerprint()) for split in ("stage1", "test"))
        curves = _curves([f"stage1-{k}" for k in config.model.transformers], records)
        latents = codec.tables().latents().detach().numpy()
        losses = charts.codebook_losses(curves.values())
        found = properties.analyze(latents, properties.Clips.of(train), properties.Clips.of(test), losses)
        _write_report("analysis/analysis.json", found | {"missing": [part.text for part in records.missing]})
        for name, figure in properties.draw(found).items():
            (REPORTS / "analysis" / f"{name}.png").write_bytes(figures.to_png(figure))
            run.figure(name, figure)
        run.summary(properties.summary(found))


def evaluate(config: Config) -> None:
    """Samples against real clips: reports/metrics.json, and the report with players, reports/index.html."""
    from siren.evaluate import charts, tables
    from siren.evaluate.evaluate import evaluate as measure
    from siren.evaluate.players import PLAYED, choose
    from siren.networks import clap, codec, imagebind, judge

    with tracking.stage("evaluate", config, sections=("seed", "evaluate.evaluate")) as run:
        device, rate, settings = _device(), config.audio.sample_rate, config.evaluate.evaluate
        listing = json.loads((SAMPLES / "samples.json").read_text())
        prompts = listing["prompts"]
        ids = [prompt["id"] for prompt in prompts]
        real = _recordings(ids)
        arms = {arm: _generated(arm, ids) for arm in listing["arms"]}
        arms["codec"] = _through_codec(codec.load(MODELS / "codec", device), real, settings.batch_size, device)
        judges = {kind: judge.load(MODELS / "judge" / role, device) for kind, role in EARS.items()}
        others = clap.load(MODELS / "clap", device), imagebind.load(MODELS / "imagebind", device)
        measured = measure(
            arms, prompts, real, judges, *others, settings, config.seed, rate, device, _network_names(config)
        )
        measured.metrics["arms"]["stage1"] |= _balance(config)
        (REPORTS / "metrics.json").write_text(json.dumps(measured.metrics, indent=1, sort_keys=True) + "\n")
        (REPORTS / "confusion.csv").write_text(charts.confusion_csv(measured.clips))
        chosen = choose(prompts, config.evaluate.sample.report_clips)
        sounds = {arm: dict(zip(ids, wavs, strict=True)) for arm, wavs in {"real": real, **arms}.items()}
        _write_page(config, measured, chosen, sounds, listing)
        run.summary(tables.summary(measured.metrics))
        run.artifact(REPORTS / "index.html")
        for name, figure in charts.evaluation_figures(measured.metrics).items():
            run.figure(name, figure)
        for prompt, arm in ((p, a) for p in chosen[:4] for a in PLAYED if a in sounds):
            run.audio(f"{prompt['id']}/{arm}", sounds[arm][prompt["id"]], rate)


def _balance(config: Config) -> dict[str, float]:
    """The paper's Loss Mean and Loss Ratio of stage 1 (Table 5), from its curves; nothing where one is missing."""
    from siren.evaluate import analyze, charts
    from siren.evaluate.records import Records

    records = Records()  # what is missing here is named by the page
    curves = _curves([f"stage1-{k}" for k in config.model.transformers], records)
    found = None if records.missing else analyze.convergence(charts.codebook_losses(curves.values()))
    return {} if found is None else {"loss_mean": round(found["mean"], 6), "loss_ratio": round(found["ratio"], 6)}


def _write_page(config: Config, measured: Any, chosen: Any, sounds: Any, listing: dict[str, Any]) -> None:
    """Everything that the pipeline left behind, on one page: reports/index.html."""
    from siren.evaluate.records import Records
    from siren.evaluate.report import Report, render

    records = Records()
    networks = {n: records.json(REPORTS / "networks" / f"{n}.json", "networks", n) for n in NETWORKS}
    page = Report(
        scale=config.scale,
        sample_rate=config.audio.sample_rate,
        prompts=chosen,
        sounds=sounds,
        metrics=measured.metrics,
        clips=measured.clips,
        curves=_curves([*(f"stage1-{k}" for k in config.model.transformers), "align"], records),
        funnel=_funnel(records),
        quarantine=records.quarantine({"fetch": CLIPS, "segment": SEGMENTS, "caption": CAPTIONS, "score": SCORES}),
        networks={name: figures for name, figures in networks.items() if figures is not None},
        analysis=records.json(REPORTS / "analysis" / "analysis.json", "codes", "analyze"),
        lineage=_lineage(config, listing),
        missing=records.missing,
        sweep=records.sweep(SPLITS / "sweep.csv"),
        min_score=config.filter.select.min_score,
    )
    (REPORTS / "index.html").write_text(render(page), encoding="utf-8")


def _curves(names: list[str], records: Any) -> dict[str, Any]:
    """Curves by the name of their file; those that are missing are noted in `records`."""
    curves = {n: records.curve(REPORTS / "curves" / f"{n}.csv", n.replace("stage1-", "stage1@")) for n in names}
    return {name: curve for name, curve in curves.items() if curve is not None}


def _funnel(records: Any) -> list[tuple[str, int, str]]:
    """How many items each step of the corpus kept: (step, count, note)."""
    fetched = records.json(CLIPS / "summary.json", "corpus", "fetch") or {}
    steps = [
        ("found", fetched.get("in"), "in the sources"),
        ("fetched", records.rows(CLIPS / "clips.parquet", "fetch"), "clips that could be fetched"),
        ("segmented", records.rows(SEGMENTS / "segments-*.parquet", "segment"), "segments with something to hear"),
        ("captioned", records.rows(CAPTIONS / "captions.parquet", "caption"), "one caption each"),
        ("scored", records.rows(SCORES / "scores.parquet", "score"), "by CLAP"),
        ("stage 1", records.rows(SPLITS / "stage1.parquet", "select"), "pairs to train on"),
        ("alignment", records.rows(SPLITS / "rl.parquet", "select"), "prompts, the best scored of them"),
        ("validation", records.rows(SPLITS / "val.parquet", "select"), "held out"),
        ("test", records.rows(SPLITS / "test.parquet", "select"), "held out, never trained or chosen on"),
    ]
    return [(name, count, note) for name, count, note in steps if count is not None]


def _lineage(config: Config, listing: dict[str, Any]) -> list[tuple[str, str]]:
    """What the report was made from, by hash."""
    stage1, made_with = _stage1_folders(config), _made_with("test")
    folders = [*stage1, *(folder for folder in _aligned_folders(config) if folder not in stage1)]
    given = ", ".join(f"{key} {value}" for key, value in listing["sampling"].items() if value is not None)
    weights = {f"weights of {folder.relative_to(MODELS)}": _hash(folder / "model.safetensors") for folder in folders}
    return [
        ("scale, seed", f"{config.scale}, {config.seed}"),
        ("sampling", given),
        ("candidates of best of N", str(listing.get("candidates", 1))),
        ("codec", made_with["codec"]),
        ("text encoder", made_with["text_encoder"]),
        ("test tokens", made_with["tokens"]),
        *weights.items(),
    ]


def _network_names(config: Config) -> dict[str, str]:
    """What metrics call the text-audio networks: the published weights they have, or kind and scale. Judges know."""
    from siren.networks.store import published_name

    chosen = {kind: getattr(config.networks, kind).weights for kind in ("clap", "imagebind")}
    published = {kind: weights for kind, weights in chosen.items() if weights and not Path(weights).is_dir()}
    return {kind: published_name(published[kind]) if kind in published else f"{kind}-{config.scale}" for kind in chosen}


def _recordings(ids: Sequence[str]) -> Any:
    """The real clips of these ids, float32 [N, S]. Raises ValueError for an id that no segment has."""
    from siren import shards

    table = shards.read_shards(SEGMENTS, "segments", ["id", "pcm"])
    rows = {name: row for row, name in enumerate(table["id"].to_pylist())}
    if missing := [name for name in ids if name not in rows]:
        raise ValueError(f"{len(missing)} test prompts have no segment, among them {missing[0]!r}; run `siren sample`")
    return shards.pcm_to_float(table["pcm"].take([rows[name] for name in ids]))


def _generated(arm: str, ids: list[str]) -> Any:
    """The sampled clips of one arm in the order of the prompts, float32 [N, S]. Each must be there."""
    import numpy as np

    from siren import audio

    return np.stack([audio.read(SAMPLES / arm / f"{name}.wav")[0][0] for name in ids])


def _through_codec(codec: Any, wavs: Any, batch_size: int, device: str) -> Any:
    """Real clips encoded and decoded again: what is left to hear of them at best. [N, S]"""
    import numpy as np
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(wavs), batch_size):
            batch = torch.from_numpy(wavs[start : start + batch_size]).to(device)
            parts.append(codec.decode(codec.encode(batch))[:, : wavs.shape[1]].cpu().numpy())
    return np.concatenate(parts)


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

    device, stage1 = _device(), config.train.stage1
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
        _made_with("stage1", "val"),
        _frames(config.filter.score.crop_seconds, codec),
        device,
        hear,
        heard_with,
        ("is", "sample_seconds") if hear else (),
    )
    about = {"scale": config.scale, "steps": stage1.training.steps, "batch": stage1.training.batch_size}
    about |= {"pairs": len(tokens), "held-out pairs": len(validation), "codebooks": world.tables.num_codebooks}
    return world, about


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
    from siren.networks import codec as codecs
    from siren.randomness import item_seed

    device, folders, settings = _device(), _stage1_folders(config), config.align
    if steps is not None:
        settings = dataclasses.replace(settings, steps=steps, warmup_steps=min(settings.warmup_steps, steps - 1))
    codec = codecs.load(MODELS / "codec", device)
    prompts = read_tokens(TOKENS, "rl", codec.fingerprint())
    frames = _frames(config.filter.score.crop_seconds, codec)
    hear, heard_with = _judged(config, codec, device, tried.MEASURES, ("imagebind", "clap"))
    if hear is None:
        raise ValueError("alignment cannot be compared without judges; run `dvc repro judge clap imagebind`")

    def align(model: Any, arm: Any, seed: int, log: Any, checkpoint: Any) -> list[int]:
        reward = _reward(config, codec, model, prompts, device)
        own = item_seed(seed, "align")  # the seed that the stage takes
        return anticausal.align(model, prompts, codec.decode, reward, arm, frames, own, log, checkpoint, device)

    world = tried.World(
        settings,
        lambda: load_model(folders, codec.fingerprint()).to(device).eval(),
        align,
        hear,
        {**_made_with("rl"), "stage1": _hashes(folders), "rewards": _hashes([MODELS / "imagebind", MODELS / "clap"])},
        heard_with,
        ("is", "sample_seconds"),
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
        _write_report(f"{name}.json", made)
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
    from siren.randomness import item_seed

    folders = [*(MODELS / "judge" / role for role in EARS.values()), MODELS / "clap", MODELS / "imagebind"]
    if absent := [folder for folder in folders if not (folder / "config.json").is_file()]:
        print(f"claims: no {absent[0]}; losses are compared, sounds are not")
        return None, {}
    prompts = read_tokens(TOKENS, "test", codec.fingerprint())
    frames, judge = _frames(config.audio.segment_seconds, codec), _bench(config, prompts, device)

    def hear(name: str, model: Any, seed: int) -> dict[str, Any]:
        begin, seeds = perf_counter(), [item_seed(seed, "sample", prompt, 0) for prompt in prompts.ids]
        wavs = sample_tokens(model, codec, prompts, seeds, frames, config.evaluate.sample, f"{name} {seed}")
        spent, (figures, clips) = perf_counter() - begin, judge(wavs, seed)
        entries = {m: goals.find(figures, m) for m in wanted}
        heard: dict[str, Any] = {m: entry["value"] for m, entry in entries.items() if entry is not None}
        heard["sample_seconds"] = round(spent / len(wavs), 4)
        return heard | ({"prompts": {m: [clip[m] for clip in clips] for m in by_prompt}} if by_prompt else {})

    sampling = to_dict(config.evaluate.sample.sampling)
    return hear, {"sampling": sampling, "networks": _hashes(folders), **_made_with("test")}


def _bench(config: Config, prompts: Any, device: str) -> Callable[[Any, int], tuple[dict[str, Any], list[Any]]]:
    """A function that judges clips of the test prompts (clips, seed): their figures, and a row for each clip."""
    import dataclasses

    from siren.evaluate.evaluate import evaluate as measure
    from siren.networks import clap, imagebind, judge

    real, rows = _recordings(prompts.ids), _rows(prompts)
    judges = {kind: judge.load(MODELS / "judge" / role, device) for kind, role in EARS.items()}
    others = clap.load(MODELS / "clap", device), imagebind.load(MODELS / "imagebind", device)
    settings = dataclasses.replace(config.evaluate.evaluate, bootstrap=1)  # the intervals are over seeds or prompts
    rate, named = config.audio.sample_rate, _network_names(config)

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
        real = _recordings([p["id"] for p in chosen])
        sounds["real"] = dict(zip((p["id"] for p in chosen), real, strict=True))
    page = pages.Found(
        config.scale, rate, **records, systems=systems, prompts=chosen, sounds=sounds, num_codebooks=codebooks
    )
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / "paper.html").write_text(pages.render(page), encoding="utf-8")
    return REPORTS / "paper.html"


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
    from siren.networks import clap as claps
    from siren.networks import codec as codecs
    from siren.randomness import item_seed
    from siren.train.loop import digest

    device, settings, folders = _device(), config.evaluate.sample, _aligned_folders(config)
    codec, clap = codecs.load(MODELS / "codec", device), claps.load(MODELS / "clap", device)
    prompts = read_tokens(TOKENS, "test", codec.fingerprint())
    model, judge = load_model(folders, codec.fingerprint()).to(device), _bench(config, prompts, device)
    frames = _frames(config.audio.segment_seconds, codec)
    inputs = {"sampling": to_dict(settings.sampling), "model": _hashes(folders), "seed": config.seed}
    judges = [MODELS / "judge" / role for role in EARS.values()]
    inputs |= {"networks": _hashes([MODELS / "clap", MODELS / "imagebind", *judges]), **_made_with("test")}

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
    takes = [kept(folder / f"{candidate}.json", lambda c=candidate: take(c)) for candidate in range(count)]  # type: ignore[misc]
    named = {**_network_names(config), "scale": config.scale, "device": _machine(device)}
    _write_report("best_of.json", curves.report(takes, config.evaluate.evaluate.bootstrap, config.seed) | named)


def _machine(device: str) -> str:
    """What seconds were measured on."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def inside(steps: int | None, config: Config) -> None:
    """Gradients, losses and task vectors of trained arms: reports/inside.json. For `paper`; see `evaluate.inside`."""
    from siren.evaluate import inside as look

    world, about = _arms(config, steps)
    _write_report("inside.json", {"about": about, **look.look(world, CLAIMS)})


def register(config: Config) -> None:
    """Everything the model needs to a version in the registry, alias challenger: reports/registered.json."""
    sections = ("evaluate.register", "evaluate.sample.sampling")
    with tracking.stage("register", config, sections=sections) as run:
        parts = (_aligned_folders(config), True, MODELS / "codec", MODELS / "clap")
        name, sampling = config.evaluate.register.name, config.evaluate.sample.sampling
        _, files = _register(run, config, name, parts, sampling, REPORTS / "metrics.json", config.scale, _licences())
        # Nothing here but what follows from the inputs: no version, no time, no commit.
        listing = {"model": name, "files": files}
        (REPORTS / "registered.json").write_text(json.dumps(listing, indent=1) + "\n")


def _register(
    run: tracking.Run,
    config: Config,
    name: str,
    parts: tuple[list[Path], bool, Path, Path],
    sampling: Sampling,
    metrics: Path,
    scale: str,
    licences: list[dict[str, Any]],
) -> tuple[str, dict[str, str]]:
    """A bundle of `parts` (transformers, whether aligned, codec, CLAP) to the registry → its address, its files."""
    import tempfile

    from siren import serving
    from siren.generate import bundle
    from siren.tracking import card, registry

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        bundle.write_bundle(folder, *parts, sampling, config.audio.segment_seconds)
        networks = _networks(codec=parts[2], clap=parts[3])
        text = card.write(name, scale, json.loads(metrics.read_text()), licences, networks, run.record["tags"])
        facts = {"data": licences, "networks": networks, "policy": config.collect.licences}
        measured_on = _reference() if metrics == REPORTS / "metrics.json" else {}
        version = registry.register(run, name, folder, metrics, text, serving.signature(), facts, measured_on)
        run.tag({"model": f"models:/{name}/{version}"})
        return f"models:/{name}/{version}", bundle.file_hashes(folder)


def _reference() -> dict[str, str]:
    """A digest of the list of test prompts: by it the gate knows whether two models were measured on the same one."""
    import hashlib

    path = SAMPLES / "samples.json"  # no dependency of its own in dvc.yaml: the metrics follow from it
    if not path.is_file():
        return {}
    prompts = json.dumps(json.loads(path.read_text())["prompts"], sort_keys=True)
    return {"reference.prompts": hashlib.sha256(prompts.encode()).hexdigest()}


def import_checkpoint(folder: Path, out: Path, codec: Path | None, clap: Path | None, name: str | None) -> list[str]:
    """A release in the authors' format to `out`, checked against codec and text encoder where they are given.

    With a `name` it becomes a version of that model in the registry, sampled as params.yaml says but without guidance,
    for which it was not trained. Returns what was done, in lines.
    """
    import dataclasses
    import tempfile

    from siren import config as settings
    from siren.generate import published
    from siren.networks import clap as claps
    from siren.networks import codec as codecs

    if name is not None and (codec is None or clap is None):
        lacking = " and ".join(part for part, given in (("codec", codec), ("clap", clap)) if given is None)
        raise ValueError(f"a registered model needs its codec and its text encoder; name the {lacking} (--{lacking})")
    folders = published.import_release(
        folder, out, codecs.load(codec) if codec else None, claps.load(clap) if clap else None
    )
    against = [f"{part} {path}" for part, path in (("codec", codec), ("text encoder", clap)) if path]
    said = [f"{out}: {len(folders)} transformers; checked against {', '.join(against) or 'no codec'}"]
    if name is None or codec is None or clap is None:
        return said
    config = settings.load()
    with tracking.stage("import-checkpoint", config, sections=("audio", "evaluate.sample.sampling")) as run:
        sampling = dataclasses.replace(config.evaluate.sample.sampling, guidance=None)
        with tempfile.TemporaryDirectory() as scratch:
            metrics = Path(scratch) / "metrics.json"
            metrics.write_text("{}\n")  # it has not been evaluated here, and the gate to champion knows by that
            address, _ = _register(run, config, name, (folders, False, codec, clap), sampling, metrics, "imported", [])
    return [*said, f"{address}, alias challenger; not evaluated"]


def export_checkpoint(folder: Path, out: Path) -> str:
    """The transformers 0, 1, … in `folder`, or in the bundle that it is, as a release in the authors' format."""
    from siren.generate import published

    inside = folder / "transformers"
    root = inside if inside.is_dir() else folder
    folders = sorted((path for path in root.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))
    if not folders:
        raise ValueError(f"no transformers in {root}; name a folder of them (0, 1, …), such as {MODELS}/stage1")
    return f"{published.export_release(folders, out)}: {len(folders)} transformers"


def _licences() -> list[dict[str, Any]]:
    """Clips by source and licence, for the model card."""
    import pyarrow.parquet as pq

    table = pq.read_table(CLIPS / "clips.parquet", columns=["source", "licence"])
    groups = table.group_by(["source", "licence"]).aggregate([([], "count_all")]).to_pylist()
    rows = [{"source": g["source"], "licence": g["licence"], "clips": g["count_all"]} for g in groups]
    return sorted(rows, key=lambda row: (str(row["source"]), str(row["licence"])))


def _networks(**folders: Path) -> dict[str, str]:
    """Licence of each network that is part of the model, as its sidecar says."""
    from siren.networks.store import read_sidecar

    return {name: str(read_sidecar(path)["extra"].get("licence", "unknown")) for name, path in folders.items()}


def _untrained(config: Config, codec: Any, text_width: int, k: int) -> Any:
    """Transformer `k` as stage 1 finds it: the control that shows what training did."""
    import torch

    from siren.model.transformer import ResidualTransformer
    from siren.randomness import item_seed

    torch.manual_seed(item_seed(config.seed, f"stage1@{k}"))
    return ResidualTransformer(config.model, codec.tables().to("cpu"), text_width, k).eval()


def _stage1_folders(config: Config) -> list[Path]:
    return [MODELS / "stage1" / str(k) for k in config.model.transformers]


def _frames(seconds: float, codec: Any) -> int:
    """Codec frames of a clip of this length, rounded up."""
    return -(-round(seconds * codec.sample_rate) // codec.hop)


def _made_with(*splits: str) -> dict[str, str]:
    """What tokens are made of: fingerprints of codec and text encoder, and a hash of the shards of these splits."""
    from siren import shards

    metadata = shards.metadata(TOKENS, splits[0])
    files = [path for split in splits for path in shards.shard_paths(TOKENS, split)]
    return {
        "codec": metadata["codec"],
        "text_encoder": metadata["text_encoder"],
        "tokens": "".join(_hash(path)[:16] for path in files),
    }


def _checkpoint(name: str, keep: int = 1, run: tracking.Run | None = None, **identity: Any) -> Any:
    """Where the training `name` keeps its progress; `identity` is all that its result depends on.

    The run continues that of the process which left a checkpoint there.

    DVC runs a stage again because something that it depends on has changed, so there it starts afresh. A person who
    types the stage by hand is told that an unfinished training of other settings is in the way.
    """
    from siren.train.loop import Checkpoint

    plain = {key: to_dict(part) if is_dataclass(part) else part for key, part in identity.items()}
    checkpoint = Checkpoint(CHECKPOINTS / name, plain, keep, restart="DVC_STAGE" in os.environ)
    if run:
        run.follow(checkpoint.folder, resumes=checkpoint.latest() is not None)
    return checkpoint


def _hashes(folders: list[Path]) -> list[str]:
    return [_hash(folder / "model.safetensors") for folder in folders]


def _hash(path: Path) -> str:
    from siren.networks.store import remembered_sha256

    return remembered_sha256(path, HASHES)


def _pieces(name: str, made_with: Sequence[Path], *settings: Any) -> Path:
    """Where the pieces of a data stage wait until all are made: outside every output, so that DVC leaves them there.

    They belong to these inputs and settings and to this code; pieces of others are removed.
    """
    import shutil

    from siren.networks.store import file_sha256
    from siren.train.loop import digest

    code = [file_sha256(path) for path in sorted(Path(__file__).parent.rglob("*.py"))]
    plain = [to_dict(part) if is_dataclass(part) else part for part in settings]
    folder = PIECES / name / digest([code, [_hash(path) for path in made_with], plain])
    for other in (PIECES / name).glob("*"):
        if other != folder:
            shutil.rmtree(other)
    return folder


def _made(name: str) -> None:
    """The stage has written all of its result, and that holds: what it kept until then goes."""
    import shutil

    shutil.rmtree(PIECES / name, ignore_errors=True)


def _by_shard(
    name: str,
    make: Callable[[], Callable[[Any], tuple[Any, ...]]],
    columns: list[str],
    made_with: list[Path],
    settings: list[Any],
    network: bool = False,
    where: Any = None,
) -> tuple[Any, list[Any]]:
    """A function of tables of segments, some shards at a time → its tables as one, and what it notes of each.

    `where`: an engine other than the chosen one.
    """
    import pyarrow as pa

    from siren import engine, shards

    work, rows = (
        _pieces(name, [*_segments(), *made_with], *settings),
        shards.whole(SEGMENTS, "segments", SHARDS_AT_ONCE),
    )
    tables = partial(engine.Tables, make, columns)
    paths = engine.pieces(where or engine.chosen(), tables, rows, work, name, "segment", network)
    found = [shards.read_table(path).replace_schema_metadata(None) for path in paths]
    return pa.concat_tables(found).combine_chunks(), [engine.notes(path) for path in paths]


def _captioning(config: Config) -> Any:
    """What `caption` does to a table of segments."""
    from siren.filter.caption import Captioning

    return Captioning(config.filter.caption, config.seed, config.audio.sample_rate)


def _scoring(config: Config) -> Callable[[Any], tuple[Any, ...]]:
    """What `score` does to a table of segments."""
    import pyarrow.parquet as pq

    from siren.filter.score import score

    columns = ["id", "caption", "candidates"]
    (clap, device), captions = _clap(), pq.read_table(CAPTIONS / "captions.parquet", columns=columns)
    return lambda segments: score(clap, segments, captions, config.audio, config.filter.score, device)


def _segments() -> list[Path]:
    return sorted(SEGMENTS.glob("segments-*.parquet"))


def _saved(*networks: str) -> list[Path]:
    """Weights, sidecars and tokenisers of these networks."""
    return [path for name in networks for path in sorted((MODELS / name).iterdir()) if path.is_file()]


def _codec() -> tuple[Any, str]:
    """The codec and its device, in the process that works with it."""
    from siren.networks import codec as codecs

    return codecs.load(MODELS / "codec", _device()), _device()


def _clap() -> tuple[Any, str]:
    """Likewise, the text-audio encoder."""
    from siren.networks import clap as claps

    return claps.load(MODELS / "clap", _device()), _device()


def _waveforms(split: str) -> Any:
    """int16 [N, S] of the segments of one split. Raises ValueError where there are none."""
    import pyarrow.compute as pc

    from siren import shards

    table = shards.read_shards(SEGMENTS, "segments", ["split", "pcm"])
    table = table.filter(pc.equal(table["split"], split))
    if table.num_rows == 0:
        raise ValueError(f"no segment of split {split!r} in {SEGMENTS}; give the source clips of that split")
    return shards.pcm_array(table["pcm"])


def _text_audio(name: str, config: Config, networks: Any, run: tracking.Run) -> None:
    """Load or train one text-audio encoder (`networks` is its package), measure it on held-out clips, and keep it."""
    import torch

    from siren.randomness import item_seed
    from siren.train.contrastive import train_contrastive
    from siren.train.retrieval import by_meaning, quality

    network, rate = getattr(config.networks, name), config.audio.sample_rate
    device, seed, checkpoint = _device(), item_seed(config.seed, name), None
    wavs, captions, wordings, labels, relations = _captioned("train")
    if network.weights is not None:
        made, extra = networks.load_weights(network, rate).to(device), networks.extra(network.weights)
    else:
        assert network.training is not None  # config.Network holds one of the two
        torch.manual_seed(seed)
        made = networks.build(network, [wording for clip in wordings for wording in clip], rate)
        made_with = [_hash(path) for path in [*sorted(SEGMENTS.glob("segments-*")), CAPTIONS / "captions.parquet"]]
        checkpoint = _checkpoint(name, run=run, network=network, audio=config.audio, seed=seed, data=made_with)
        settings = network.training
        train_contrastive(made, wavs, wordings, labels, relations, settings, seed, run.log, device, checkpoint)
        extra = {"recipe": to_dict(settings), "seed": seed}
    known, report = by_meaning(wordings, labels, relations), {}
    for split in ("val", "test"):
        held_out, captions, _, labels, relations = _captioned(split)
        if captions:
            report[split] = quality(made, held_out, captions, labels, relations, known)
    networks.save(MODELS / name, made, extra | {"quality": report})
    if checkpoint:
        checkpoint.clear()
    _write_report(f"networks/{name}.json", report)
    run.summary(flatten(report))


def _captioned(split: str) -> tuple[Any, list[str], list[list[str]], list[list[str]], list[str | None]]:
    """Segments of one split that have a caption: int16 [N, S], the caption, all its wordings, labels, relation."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from siren import shards

    captions = pq.read_table(CAPTIONS / "captions.parquet", columns=["id", "caption", "candidates"])
    table = shards.read_shards(SEGMENTS, "segments", ["id", "split", "labels", "relation", "pcm"])
    table = table.filter(pc.and_(pc.equal(table["split"], split), pc.is_in(table["id"], captions["id"])))
    found = {row.pop("id"): row for row in captions.to_pylist()}
    rows = [found[name] for name in table["id"].to_pylist()]
    if split == "train" and not rows:
        raise ValueError(f"no segment of split {split!r} in {SEGMENTS} has a caption; give the source such clips")
    wordings = [list(dict.fromkeys([row["caption"], *(row["candidates"] or [])])) for row in rows]
    wavs = shards.pcm_array(table["pcm"]) if rows else np.zeros((0, 0), np.int16)
    labels, relations = table["labels"].to_pylist(), table["relation"].to_pylist()
    for index, row in enumerate(rows):
        if not labels[index]:  # clips mean the same where their labels do; one without means what its caption says
            labels[index], relations[index] = [row["caption"]], "caption"
    return wavs, [row["caption"] for row in rows], wordings, labels, relations


def _prefixed(log: Callable[[int, dict[str, float]], None], name: str) -> Callable[[int, dict[str, float]], None]:
    """The same log with `name/` before every metric, for stages that train more than one network."""
    return lambda step, metrics: log(step, {f"{name}/{key}": value for key, value in metrics.items()})


def _labelled(split: str, config: Config, sample_rate: int) -> tuple[Any, list[list[str]]]:
    """Segments of one split as int16 [N, S] at `sample_rate`, with their labels; none where the split has none."""
    import numpy as np
    import pyarrow.compute as pc

    from siren import audio, shards

    table = shards.read_shards(SEGMENTS, "segments", ["split", "labels", "pcm"])
    table = table.filter(pc.equal(table["split"], split))
    wavs, labels = shards.pcm_array(table["pcm"]), table["labels"].to_pylist()
    if config.audio.sample_rate != sample_rate and len(wavs):
        scale = np.float32(shards.FULL_SCALE)
        moved = (audio.resample(wav / scale, config.audio.sample_rate, sample_rate) for wav in wavs)
        wavs = np.stack([np.round(np.clip(wav, -1, 1) * scale).astype(np.int16) for wav in moved])
    return wavs, labels


def _write_report(name: str, report: dict[str, Any]) -> None:
    """Figures as JSON below reports/, for `dvc metrics`."""
    path = REPORTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def _device() -> str:
    """The accelerator where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def audit(thresholds: Sequence[float], config: Config) -> Any:
    """The corpus in figures, as far as it is made; also at the paper's thresholds. For `siren corpus`."""
    from siren.filter import audit as audits

    select = config.filter.select
    taus = thresholds or (*audits.TIERS, select.min_score)
    return audits.audit(_tables(), config.audio.sample_rate, taus, select.min_crop_score)


def history(name: str) -> tuple[Callable[[Any], str], list[tuple[str, dict[str, Any]]]]:
    """What every stage says of an item, and how to print a value of it. For `siren corpus show`."""
    from siren.filter import audit as audits

    return audits.text, audits.history(_tables(), name)


def _tables() -> Any:
    """The tables of the data stages that have run."""
    import pyarrow.parquet as pq

    from siren import shards
    from siren.collect.segment import SCHEMA
    from siren.filter import audit as audits

    folders = {"fetch": CLIPS, "segment": SEGMENTS, "caption": CAPTIONS, "score": SCORES}
    columns = [column for column in SCHEMA.names if column != "pcm"]
    files = {"clips": CLIPS, "captions": CAPTIONS, "scores": SCORES}
    found = {name: folder / f"{name}.parquet" for name, folder in files.items()}
    summary = CLIPS / "summary.json"
    return audits.Tables(
        fetched=json.loads(summary.read_text())["in"] if summary.is_file() else None,
        segments=shards.read_shards(SEGMENTS, "segments", columns)
        if shards.shard_paths(SEGMENTS, "segments")
        else None,
        splits={path.stem: pq.read_table(path) for path in sorted(SPLITS.glob("*.parquet"))},
        tokens={
            path.stem: shards.read_shards(TOKENS, path.stem, ["id", "num_frames", "text_length", "crop_offsets"])
            for path in sorted(SPLITS.glob("*.parquet"))
            if shards.shard_paths(TOKENS, path.stem)
        },
        quarantined={
            name: shards.read_quarantine(folder)
            for name, folder in folders.items()
            if (folder / "quarantine.parquet").is_file()
        },
        **{name: pq.read_table(path) for name, path in found.items() if path.is_file()},
    )


def _account(name: str, folder: Path, counts: dict[str, Any], quarantine: list[dict[str, str]]) -> dict[str, float]:
    """Write a data stage's quarantine and summary, end it with one line on stdout, and return its figures."""
    from siren import shards

    shards.write_quarantine(folder, quarantine)
    reasons = dict(sorted(Counter(row["reason"] for row in quarantine).items()))
    (folder / "summary.json").write_text(json.dumps(counts | {"reasons": reasons}, indent=1) + "\n")
    why = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    print(f"{name}: {counts['in']} in, {counts['out']} out, {counts['quarantined']} quarantined{why and f' ({why})'}")
    return counts | {f"reason/{reason}": count for reason, count in reasons.items()}
