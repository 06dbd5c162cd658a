"""A project whose models are random and tiny, as the stage `register` finds it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from siren import config
from siren.config import Config, Network
from siren.generate.bundle import save_transformer
from siren.hashing import file_sha256
from siren.model.transformer import ResidualTransformer
from siren.networks import clap as claps
from siren.networks import codec as codecs
from tests.model import published

ROOT = Path(__file__).resolve().parents[2]
CODEC = {"window": 64, "hop": 32, "mel_bands": 8, "width": 8, "latent": 8, "encoder_blocks": 1, "decoder_blocks": 1}
DAC = {"encoder_dim": 2, "rates": [2, 4], "decoder_dim": 8, "num_codebooks": 12, "codebook_size": 1024, "code_dim": 4}
CODES = {"num_codebooks": 4, "codebook_size": 16, "code_dim": 4}
CLAP = {"width": 16, "heads": [2, 4], "text_width": 32, "text_ffn": 64, "embed_dim": 24}


def settings(name: str = "siren") -> Config:
    """The committed settings with a tiny model, registered as `name`."""
    given = config.load(ROOT / "params.yaml")
    small = {"dim": 16, "num_heads": 2, "num_kv_heads": 2, "main_layers": 1, "decoder_layers": 1, "ffn_multiple_of": 8}
    model = dataclasses.replace(given.model, transformers=(0, 1), **small)
    register = dataclasses.replace(given.evaluate.register, name=name)
    audio = dataclasses.replace(given.audio, segment_seconds=0.1)
    evaluate = dataclasses.replace(given.evaluate, register=register)
    crops = dataclasses.replace(given.filter, score=dataclasses.replace(given.filter.score, crop_seconds=0.1))
    return dataclasses.replace(given, model=model, evaluate=evaluate, audio=audio, filter=crops)


def write_models(root: Path, config: Config) -> None:
    """models/ and data/clips of a project, random."""
    torch.manual_seed(0)
    codec = codecs.build(Network("spectral", "unused", CODEC | CODES, None), config.audio)
    codecs.save(root / "models" / "codec", codec, {"licence": "Apache-2.0"})
    clap = claps.build(Network("transformers", "unused", CLAP, None), ["a dog barks", "rain falls"], 16000)
    claps.save(root / "models" / "clap", clap, {"licence": "Apache-2.0"})
    made_with = {"codec": codec.fingerprint(), "text_encoder": clap.text_fingerprint()}
    for k in config.model.transformers:
        transformer = ResidualTransformer(config.model, codec.tables(), clap.text_width, k)
        save_transformer(root / "models" / "stage1" / str(k), transformer, made_with)
    save_transformer(
        root / "models" / "aligned" / "0", ResidualTransformer(config.model, codec.tables(), 32, 0), made_with
    )
    clips = root / "data" / "clips"
    clips.mkdir(parents=True)
    pq.write_table(pa.table({"source": ["scenes", "scenes"], "licence": ["CC0-1.0"] * 2}), clips / "clips.parquet")


def write_release(root: Path) -> None:
    """A checkpoint in the authors' format, and the codec and text encoder that it belongs to; all random."""
    torch.manual_seed(0)
    codec = codecs.build(Network("transformers", "unused", DAC, None), settings().audio)
    codecs.save(root / "codec", codec)
    clap = claps.build(Network("transformers", "unused", CLAP | {"text_width": 12}, None), ["a dog barks"], 16000)
    claps.save(root / "clap", clap)
    released = published.TINY | {"dac_feature_dim": codec.latent_dim}
    published.write(root / "release", published.states(released, tables=codec.tables()), released)


def weights(root: Path) -> list[str]:
    """The SHA-256 of the aligned model's transformers, by number: an aligned one goes before that of stage 1."""
    arms = ("stage1", "aligned")
    found = {path.parent.name: path for arm in arms for path in root.glob(f"models/{arm}/*/model.safetensors")}
    return [file_sha256(found[name]) for name in sorted(found, key=int)]


def write_metrics(root: Path, accuracy: float = 0.9, fad: float = 2.0, **changes: Any) -> None:
    """reports/metrics.json with intervals of 0.05 and 0.5 around, measured on the models that are there."""
    arm = {
        "event_accuracy": {"value": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05, "count": 180},
        "fad@vggish-demo": {"value": fad, "low": fad - 0.5, "high": fad + 0.5, "count": 276},
        "is@cnn14-demo": {"value": 5.0, "std": 0.1, "splits": 10},
        "silent_clips": 0,
    }
    report = {"prompts": {"all": 276, "one_event": 180}, "arms": {"aligned": arm}}
    report |= {"weights": {"aligned": weights(root)}} | changes
    path = root / "reports" / "metrics.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report))
