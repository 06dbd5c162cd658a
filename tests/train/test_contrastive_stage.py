"""The stages `clap` and `imagebind`, both ways: weights trained on the segments, and weights loaded from a folder."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from siren import config as settings
from siren import shards
from siren.networks import clap as claps
from siren.networks import imagebind as rewards
from siren.stages import pipeline, places
from tests.tables import write_shards

from .test_contrastive import CLAP, IMAGEBIND, corpus

PARAMS = Path(__file__).parents[2] / "params.yaml"
PACKAGES = {"clap": claps, "imagebind": rewards}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with 40 captioned segments, and two more that lost their caption."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIREN_EXPORT", "0")
    wavs, captions, labels, relations = corpus(42)
    names = [f"clip-{index}" for index in range(42)]
    columns = {
        "id": names,
        "split": ["train"] * 26 + ["val"] * 10 + ["test"] * 6,
        "labels": labels,
        "relation": relations,
        "pcm": [wav.tobytes() for wav in wavs],
    }
    write_shards(places.SEGMENTS, "segments", pa.table(columns), rows_per_shard=16)
    kept = {"id": names[:40], "caption": [wordings[0] for wordings in captions[:40]], "candidates": captions[:40]}
    shards.write_table(places.CAPTIONS / "captions.parquet", pa.table(kept))
    return tmp_path


def configured(name: str, weights: str | None) -> settings.Config:
    whole = settings.load(PARAMS)
    network = getattr(whole.networks, name)
    assert network.training is not None
    training = replace(network.training, steps=3, warmup_steps=1, batch_size=8, log_every=1)
    architecture = CLAP if name == "clap" else IMAGEBIND
    network = replace(network, architecture=architecture, training=training, weights=weights)
    return replace(whole, networks=replace(whole.networks, **{name: network}))


@pytest.mark.parametrize("name", ["clap", "imagebind"])
def test_trained_here_or_loaded_the_stage_leaves_the_same_network(name: str, workspace: Path) -> None:
    stage = pipeline.STAGES[name]
    stage(configured(name, weights=None))
    (workspace / "models" / name).rename(workspace / "kept")
    report = Path(f"reports/networks/{name}.json").read_text()
    figures = json.loads(report)
    assert figures["val"]["clips"] == 10
    assert figures["test"]["clips"] == 4, "segments without a caption are left out"
    assert figures["val"]["order_pairs"] > 0
    assert not list(Path(".siren/checkpoints").rglob("*.safetensors")), "nothing is left to resume"

    stage(configured(name, weights="kept"))
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (workspace / "models" / name / file).read_bytes() == (workspace / "kept" / file).read_bytes()
    assert Path(f"reports/networks/{name}.json").read_text() == report


def test_clap_and_the_reward_share_neither_start_nor_order_nor_weights(workspace: Path) -> None:
    pipeline.clap(configured("clap", weights=None))
    config = configured("imagebind", weights=None)
    network = replace(config.networks.imagebind, backend="clap", architecture=CLAP)
    pipeline.imagebind(replace(config, networks=replace(config.networks, imagebind=network)))
    one, other = claps.load("models/clap").state_dict(), rewards.load("models/imagebind").state_dict()
    assert one.keys() == other.keys()
    learned = [name for name in one if name.endswith("weight") and one[name].ndim >= 2]
    assert not any(torch.equal(one[name], other[name]) for name in learned)


def test_a_corpus_without_training_clips_says_so(workspace: Path) -> None:
    table = shards.read_shards(places.SEGMENTS, "segments")
    held_out = table.set_column(table.schema.get_field_index("split"), "split", pa.array(["val"] * table.num_rows))
    write_shards(places.SEGMENTS, "segments", held_out, rows_per_shard=100)
    with pytest.raises(ValueError, match="no segment of split 'train'"):
        pipeline.clap(configured("clap", weights=None))
