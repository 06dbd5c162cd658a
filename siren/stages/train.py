"""Stages of train: the frozen networks, loaded or trained here, then the transformers of stage 1 one by one."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from siren import tracking
from siren.config import Config, flatten, to_dict
from siren.stages import places, reading
from siren.stages.places import CAPTIONS, EXAMPLES, MODELS, REPORTS, SEGMENTS, TOKENS

BEAMS = 2  # with which a captioner is measured


def codec(config: Config) -> None:
    """The RVQ codec: load the weights that the settings name, or train one on the segments; models/codec."""
    import torch

    from siren.hashing import item_seed
    from siren.networks import codec as codecs
    from siren.train.codec import quality, reconstructions, train_codec

    network = config.networks.codec
    with tracking.stage("codec", config, sections=("seed", "audio", "networks.codec")) as run:
        device, seed = places.device(), item_seed(config.seed, "codec")
        training, validation = reading.waveforms("train"), reading.waveforms("val")
        checkpoint = None
        torch.manual_seed(seed)
        if network.weights is not None:
            made, extra = codecs.load_weights(network, config.audio), codecs.extra(network.weights)
        else:
            assert network.training is not None  # config.Network holds one of the two
            made, extra = codecs.build(network, config.audio), {"recipe": to_dict(network.training), "seed": seed}
            made_with = [places.sha256(path) for path in sorted(SEGMENTS.glob("segments-*.parquet"))]
            checkpoint = places.checkpoint(
                "codec", run=run, network=network, audio=config.audio, seed=seed, data=made_with
            )
            train_codec(made, training, network.training, seed, run.log, device, checkpoint)
        report = quality(made, validation, device)
        untrained = quality(codecs.untrained(made, seed), validation, device)
        report["untrained"] = {name: untrained[name] for name in ("mel_distance", "si_sdr")}
        codecs.save(MODELS / "codec", made, extra | {"quality": report})
        if checkpoint:
            checkpoint.clear()
        places.write_report("networks/codec.json", report)
        run.summary(flatten(report))
        for index, pair in enumerate(reconstructions(made, validation[:2], device)):
            for name, wav in zip(("real", "decoded"), pair, strict=True):
                run.audio(f"held-out-{index}/{name}", wav, made.sample_rate)


def autocap(config: Config) -> None:
    """The captioner of sound and metadata: loaded, or trained on what people captioned; models/autocap.

    Where networks.autocap is null, no segment needs one, and the folder says so.
    """
    folder, settings = MODELS / "autocap", config.networks.autocap
    with tracking.stage("autocap", config, sections=("seed", "audio", "networks.autocap")) as run:
        if settings is None:
            places.no_network(folder)
            places.write_report("networks/autocap.json", {})
            return
        import torch

        from siren.hashing import item_seed
        from siren.networks import autocap as captioners
        from siren.train.autocap import train_autocap

        device, seed, rate = places.device(), item_seed(config.seed, "autocap"), config.audio.sample_rate
        checkpoints: list[Any] = []
        if settings.weights is None:
            _, wavs, captions, known, relations = reading.described("train")
            torch.manual_seed(seed)
            made = captioners.build(settings, [text for texts in captions for text in texts], rate)
            made_with = [places.sha256(path) for path in sorted(SEGMENTS.glob("segments-*.parquet"))]
            identity: dict[str, Any] = {"autocap": settings, "audio": config.audio, "seed": seed, "data": made_with}

            def checkpoint(stage: str) -> Any:
                checkpoints.append(places.checkpoint(f"autocap-{stage}", run=run, **identity))
                return checkpoints[-1]

            train_autocap(
                made, _heard(made, wavs), captions, known, relations, settings, seed, run.log, device, checkpoint
            )
            extra = {"recipe": to_dict(settings), "seed": seed, "licence": "Apache-2.0"}
        else:
            made, extra = captioners.load_weights(settings, rate).to(device), captioners.extra(settings.weights)
        report = {split: _described(made, split, config, run) for split in ("val", "test")}
        captioners.save(folder, made, extra)
        for place in checkpoints:
            place.clear()
        places.write_report("networks/autocap.json", report)
        run.summary({k: v for k, v in flatten(report).items() if isinstance(v, int | float)})


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
    from siren.hashing import item_seed
    from siren.networks import judge as judges
    from siren.train.judge import quality, train_judge

    with tracking.stage("judge", config, sections=("seed", "audio", "networks.judge")) as run:
        device, report = places.device(), {}
        validation = reading.labelled("val", config, judges.SAMPLE_RATE)
        for name in judges.ROLES:
            network, seed = judges.checked(getattr(config.networks.judge, name), name), item_seed(config.seed, name)
            checkpoint = None
            if network.weights is not None:
                made, extra = judges.obtain(network, device), judges.extra(network.weights)
            else:
                assert network.training is not None  # config.Network holds one of the two
                wavs, labels = reading.labelled("train", config, judges.SAMPLE_RATE)
                made_with = [places.sha256(path) for path in sorted(SEGMENTS.glob("segments-*.parquet"))]
                checkpoint = places.checkpoint(f"judge-{name}", run=run, network=network, seed=seed, data=made_with)
                made = judges.build(network, sorted({label for clip in labels for label in clip}), seed)
                log = _prefixed(run.log, name)
                train_judge(made, wavs, labels, network.training, seed, log, device, checkpoint)
                extra = {"recipe": to_dict(network.training), "seed": seed, "licence": "Apache-2.0"}
            report[name] = quality(made, *validation, device)
            judges.save(MODELS / "judge" / name, made, extra | {"quality": report[name]})
            if checkpoint:
                checkpoint.clear()
        places.write_report("networks/judge.json", report)
        run.summary({k: v for k, v in flatten(report).items() if v is not None})


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
    from siren.hashing import item_seed
    from siren.model.transformer import ResidualTransformer
    from siren.networks import codec as codecs
    from siren.train.loop import Curve
    from siren.train.stage1 import train_stage1

    codec, settings = codecs.load(MODELS / "codec"), config.train.stage1
    tokens, validation = (read_tokens(TOKENS, split, codec.fingerprint()) for split in ("stage1", "val"))
    seed, crop = item_seed(config.seed, f"stage1@{k}"), places.num_frames(config.filter.score.crop_seconds, codec)
    torch.manual_seed(seed)
    transformer = ResidualTransformer(config.model, codec.tables(), tokens.text_width, k)
    made_with = places.made_with("stage1", "val")
    identity: dict[str, Any] = {"model": config.model, "stage1": settings, "crop_frames": crop}
    checkpoint = places.checkpoint(
        f"stage1-{k}", settings.keep_checkpoints, run=run, **identity, seed=seed, data=made_with
    )
    curve = Curve(run.log, checkpoint.folder) if run else None
    log = curve or (lambda step, metrics: None)
    figures = train_stage1(
        transformer, tokens, validation, settings, crop, seed, log, checkpoint, places.device(), ranks
    )
    if run and curve:
        save_transformer(MODELS / "stage1" / str(k), transformer, made_with)
        curve.write(REPORTS / "curves" / f"stage1-{k}.csv")
        checkpoint.clear()
        run.summary(figures)


def _text_audio(name: str, config: Config, networks: Any, run: tracking.Run) -> None:
    """Load or train one text-audio encoder (`networks` is its package), measure it on held-out clips, and keep it."""
    import torch

    from siren.hashing import item_seed
    from siren.train.contrastive import train_contrastive
    from siren.train.retrieval import by_meaning, quality

    network, rate = getattr(config.networks, name), config.audio.sample_rate
    device, seed, checkpoint = places.device(), item_seed(config.seed, name), None
    wavs, captions, wordings, labels, relations = reading.captioned("train")
    if network.weights is not None:
        made, extra = networks.load_weights(network, rate).to(device), networks.extra(network.weights)
    else:
        assert network.training is not None  # config.Network holds one of the two
        torch.manual_seed(seed)
        made = networks.build(network, [wording for clip in wordings for wording in clip], rate)
        made_with = [
            places.sha256(path) for path in [*sorted(SEGMENTS.glob("segments-*")), CAPTIONS / "captions.parquet"]
        ]
        checkpoint = places.checkpoint(name, run=run, network=network, audio=config.audio, seed=seed, data=made_with)
        settings = network.training
        train_contrastive(made, wavs, wordings, labels, relations, settings, seed, run.log, device, checkpoint)
        extra = {"recipe": to_dict(settings), "seed": seed}
    known, report = by_meaning(wordings, labels, relations), {}
    for split in ("val", "test"):
        held_out, captions, _, labels, relations = reading.captioned(split)
        if captions:
            report[split] = quality(made, held_out, captions, labels, relations, known)
    networks.save(MODELS / name, made, extra | {"quality": report})
    if checkpoint:
        checkpoint.clear()
    places.write_report(f"networks/{name}.json", report)
    run.summary(flatten(report))


def _heard(made: Any, wavs: list[Any]) -> Any:
    """Clips as a captioner hears them when it captions. int16 [N, S]"""
    import numpy as np

    from siren.filter.caption.autocap import fit

    return np.stack([fit(wav, made.num_samples) for wav in wavs])


def _described(made: Any, split: str, config: Config, run: tracking.Run) -> dict[str, Any]:
    """How near a captioner's captions of held-out clips come to people's, with what is known of clips and without.

    Some clips are kept in the run, by what it says of their sound alone.
    """
    from siren.evaluate import captions as measured
    from siren.shards import FULL_SCALE
    from siren.train.autocap import caption_all, clap_score

    ids, wavs, captions, known, _ = reading.described(split)
    if not ids:
        return {}
    wavs, references = _heard(made, wavs), dict(zip(ids, captions, strict=True))
    alone: list[dict[str, str]] = [{} for _ in ids]
    report: dict[str, Any] = {"people": {"clap_score": clap_score(made, wavs, [texts[0] for texts in captions])}}
    for name, metadata in (("sound and metadata", known), ("sound alone", alone)):
        written = caption_all(made, wavs, metadata, BEAMS)
        figures = measured.score(dict(zip(ids, written, strict=True)), references, seed=config.seed)
        examples = zip(ids, written, captions, strict=True)
        report[name] = {
            "clap_score": clap_score(made, wavs, written),
            **figures,
            "examples": [{"id": i, "written": w, "people": p[0]} for i, w, p in itertools.islice(examples, EXAMPLES)],
        }
    for name, wav, text in itertools.islice(zip(ids, wavs, written, strict=True), EXAMPLES):
        run.audio(f"{split}/{places.said(name, text)}", wav / FULL_SCALE, config.audio.sample_rate)
    return report


def _prefixed(log: Callable[[int, dict[str, float]], None], name: str) -> Callable[[int, dict[str, float]], None]:
    """The same log with `name/` before every metric, for stages that train more than one network."""
    return lambda step, metrics: log(step, {f"{name}/{key}": value for key, value in metrics.items()})
