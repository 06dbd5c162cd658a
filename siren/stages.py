"""The pipeline on one page, in order: each stage reads its files, calls the library, writes its files and logs.

Only this module knows paths, and they are those of `dvc.yaml`. A stage takes the settings and nothing else; its name
is the DVC stage, the CLI verb, the Prefect task and the MLflow run. Heavy imports are inside the stages, so that
each process loads only what it uses.
"""

import json
from pathlib import Path
from typing import Any

from siren import tracking
from siren.config import Config, to_dict

CLIPS = Path("data/clips")
SEGMENTS = Path("data/segments")
CAPTIONS = Path("data/captions")
SCORES = Path("data/scores")
SPLITS = Path("data/splits")
TOKENS = Path("data/tokens")
MODELS = Path("models")
SAMPLES = Path("outputs/samples")
REPORTS = Path("reports")
CHECKPOINTS = Path(".siren/checkpoints")  # outside every output, so that DVC leaves them to a stage it repeats


def stage1(config: Config, k: int) -> None:
    """Train transformer K alone: tokens to models/stage1/K."""
    import torch

    from siren.encode.tokens import read_tokens
    from siren.generate.bundle import save_transformer
    from siren.model.transformer import ResidualTransformer
    from siren.networks import codec as codecs
    from siren.randomness import item_seed
    from siren.train.loop import Checkpoint, Curve, digest
    from siren.train.stage1 import train_stage1

    if k not in config.model.transformers:
        raise ValueError(f"there is no transformer {k}; the model has {len(config.model.transformers)}, from 0")
    name = f"stage1@{k}"
    with tracking.stage(name, config, sections=("seed", "model", "train.stage1")) as run:
        codec = codecs.load(MODELS / "codec")
        tokens, validation = (read_tokens(TOKENS, split, codec.fingerprint()) for split in ("stage1", "val"))
        seed = item_seed(config.seed, name)
        torch.manual_seed(seed)
        transformer = ResidualTransformer(config.model, codec.tables(), tokens.text_width, k)
        made_with = _made_with("stage1", "val")
        identity = digest([to_dict(config.model), to_dict(config.train), seed, made_with])
        checkpoint = Checkpoint(CHECKPOINTS / f"stage1-{k}", identity)
        curve = Curve(run.log, checkpoint.folder, identity)
        crop = _frames(config.filter.score.crop_seconds, codec)
        figures = train_stage1(
            transformer, tokens, validation, config.train.stage1, crop, seed, curve, checkpoint, _device()
        )
        save_transformer(MODELS / "stage1" / str(k), transformer, made_with)
        curve.write(REPORTS / "curves" / f"stage1-{k}.csv")
        checkpoint.clear()
        run.summary(figures)


def align(config: Config) -> None:
    """Align transformer 0 to the others' preferences: stage 1 and the reward to models/aligned."""
    from siren.align import anticausal
    from siren.encode.tokens import read_tokens
    from siren.generate.bundle import load_model, save_transformer
    from siren.networks import codec as codecs
    from siren.networks import imagebind
    from siren.randomness import item_seed
    from siren.train.loop import Checkpoint, Curve, digest

    with tracking.stage("align", config, sections=("seed", "align")) as run:
        device = _device()
        codec = codecs.load(MODELS / "codec", device)
        prompts = read_tokens(TOKENS, "rl", codec.fingerprint())
        model = load_model(_stage1_folders(config), codec.fingerprint()).to(device)
        judge = imagebind.load(MODELS / "imagebind", device)
        made_with = _made_with("rl")
        identity = digest([to_dict(config.align), config.seed, made_with, _hashes(_stage1_folders(config))])
        checkpoint = Checkpoint(CHECKPOINTS / "align", identity)
        curve = Curve(run.log, checkpoint.folder, identity)
        anticausal.align(
            model,
            prompts,
            codec.decode,
            lambda wavs, captions: (judge.embed_audio(wavs) * judge.embed_text(captions)).sum(-1),
            config.align,
            _frames(config.filter.score.crop_seconds, codec),
            item_seed(config.seed, "align"),
            curve,
            checkpoint,
            device,
        )
        save_transformer(MODELS / "aligned", model[0], made_with)
        curve.write(REPORTS / "curves" / "align.csv")
        checkpoint.clear()


def sample(config: Config) -> None:
    """Test prompts to sound, for the untrained model, stage 1 and the aligned model: outputs/samples."""
    from siren.audio import write
    from siren.encode.tokens import read_tokens
    from siren.generate.bundle import load_model
    from siren.generate.offline import sample_tokens
    from siren.model.siren import Siren
    from siren.networks import codec as codecs
    from siren.randomness import item_seed

    settings = config.evaluate.sample
    with tracking.stage("sample", config, sections=("seed", "evaluate.sample")) as run:
        device = _device()
        codec = codecs.load(MODELS / "codec", device)
        prompts = read_tokens(TOKENS, "test", codec.fingerprint())
        folders = _stage1_folders(config)
        arms = {
            "untrained": Siren([_untrained(config, codec, prompts.text_width, k) for k in config.model.transformers]),
            "stage1": load_model(folders, codec.fingerprint()),
            "aligned": load_model([MODELS / "aligned", *folders[1:]], codec.fingerprint()),
        }
        # One seed for a prompt in every arm: differences between arms are differences between models.
        seeds = [item_seed(config.seed, "sample", name) for name in prompts.ids]
        frames = _frames(config.audio.segment_seconds, codec)
        for arm, model in arms.items():
            wavs = sample_tokens(model.to(device), codec, prompts, seeds, frames, settings, arm)
            for name, wav in zip(prompts.ids, wavs, strict=True):
                write(SAMPLES / arm / f"{name}.wav", wav, codec.sample_rate)
            run.audio(f"{arm}/{prompts.captions[0]}", wavs[0], codec.sample_rate)
        rows = [
            {"id": i, "caption": c, "labels": labels, "relation": r, "seed": s}
            for i, c, labels, r, s in zip(
                prompts.ids, prompts.captions, prompts.labels, prompts.relations, seeds, strict=True
            )
        ]
        listing = {"arms": list(arms), "sampling": to_dict(settings.sampling), "prompts": rows}
        (SAMPLES / "samples.json").write_text(json.dumps(listing, indent=1) + "\n")
        run.summary({"clips": len(rows) * len(arms)})


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
    files = [path for split in splits for path in sorted(TOKENS.glob(f"{split}-*.parquet"))]
    return {
        "codec": metadata["codec"],
        "text_encoder": metadata["text_encoder"],
        "tokens": "".join(_hash(path)[:16] for path in files),
    }


def _hashes(folders: list[Path]) -> list[str]:
    return [_hash(folder / "model.safetensors") for folder in folders]


def _hash(path: Path) -> str:
    from siren.networks.store import file_sha256

    return file_sha256(path)


def _device() -> str:
    """The accelerator where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
