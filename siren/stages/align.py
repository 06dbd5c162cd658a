"""The stage of align: stage 1, rewards and prompts to the aligned model."""

from collections.abc import Callable
from typing import Any

from siren import tracking
from siren.config import Config, to_dict
from siren.stages import places, reading
from siren.stages.places import EARS, MODELS, REPORTS, TOKENS


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
    from siren.hashing import item_seed
    from siren.networks import codec as codecs
    from siren.train.loop import Curve

    device, settings, folders = places.device(), config.align, places.stage1_folders(config)
    codec = codecs.load(MODELS / "codec", device)
    prompts = read_tokens(TOKENS, "rl", codec.fingerprint())
    model = load_model(folders, codec.fingerprint()).to(device)
    made_with, seed = places.made_with("rl"), item_seed(config.seed, "align")
    parts: dict[str, Any] = {
        "stage1": places.hashes(folders),
        "rewards": places.hashes([MODELS / "imagebind", MODELS / "clap"]),
    }
    checkpoint = places.checkpoint("align", run=run, align=settings, seed=config.seed, data=made_with, **parts)
    curve = Curve(run.log, checkpoint.folder) if run else None
    frames = places.num_frames(config.filter.score.crop_seconds, codec)
    moved = anticausal.align(
        model,
        prompts,
        codec.decode,
        build_reward(config, codec, model, prompts, device),
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


def build_reward(config: Config, codec: Any, model: Any, prompts: Any, device: str) -> Any:
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
        real = torch.from_numpy(reading.recordings(list(prompts.ids))).to(device)
        with torch.no_grad():
            heard = torch.cat([judge.embed_audio(part) for part in real.split(config.evaluate.evaluate.batch_size)])
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

    real = reading.recordings(prompts.ids)
    return watching.watcher(model, codec, prompts, real, _ears(config, device), config.align, frames, seed, keep)


def _ears(config: Config, device: str) -> Any:
    """Every network that judges clips."""
    from siren.evaluate.hearing import Ears
    from siren.networks import clap, imagebind, judge

    judges = {kind: judge.load(MODELS / "judge" / role, device) for kind, role in EARS.items()}
    others = clap.load(MODELS / "clap", device), imagebind.load(MODELS / "imagebind", device)
    rate, batch = config.audio.sample_rate, config.evaluate.evaluate.batch_size
    return Ears(judges["cnn14"], judges["vggish"], *others, rate, batch, device)
