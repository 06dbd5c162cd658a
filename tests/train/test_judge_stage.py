"""The stage `judge`, both ways: weights trained on the segments, and weights loaded from a folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from siren import config as settings
from siren.config import ConfigError
from siren.networks import judge as judges
from siren.stages import pipeline, places, reading
from tests.tables import write_shards

from .test_judge import corpus

PARAMS = Path(__file__).parents[2] / "params.yaml"
TINY = {
    "panns": {"name": "cnn14-tiny", "width": 1 / 64},
    "vggish": {"name": "vggish-tiny", "width": 1 / 64, "hidden": 8},
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with twenty labelled segments, sixteen to train on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIREN_EXPORT", "0")
    wavs, labels = corpus(20, seed=1)
    table = pa.table(
        {"split": ["train"] * 16 + ["val"] * 4, "labels": labels, "pcm": [wav.tobytes() for wav in wavs]},
    )
    write_shards(places.SEGMENTS, "segments", table, rows_per_shard=12)
    return tmp_path


def configured(weights: str | None, sample_rate: int = 16000, **backends: str) -> settings.Config:
    whole = settings.load(PARAMS)
    sections = {}
    for name, architecture in TINY.items():
        network = getattr(whole.networks.judge, name)
        training = replace(network.training, steps=3, warmup_steps=1, batch_size=4, log_every=1)
        folder = weights and f"{weights}/{name}"
        backend = backends.get(name, network.backend)
        sections[name] = replace(network, architecture=architecture, training=training, weights=folder, backend=backend)
    networks = replace(whole.networks, judge=settings.Judge(**sections))
    return replace(whole, networks=networks, audio=replace(whole.audio, sample_rate=sample_rate))


def test_trained_here_or_loaded_the_stage_leaves_the_same_judges(workspace: Path) -> None:
    pipeline.judge(configured(weights=None))
    (workspace / "models/judge").rename(workspace / "kept")
    report = json.loads(Path("reports/networks/judge.json").read_text())
    assert set(report) == {"panns", "vggish"}
    assert report["panns"]["one_event_clips"] + report["panns"]["two_event_clips"] == 4
    assert not list(Path(".siren/checkpoints").rglob("*.safetensors")), "nothing is left to resume"

    pipeline.judge(configured(weights="kept"))
    for name in ("panns", "vggish"):
        trained, loaded = judges.load(f"kept/{name}"), judges.load(f"models/judge/{name}")
        assert trained.labels == loaded.labels == ["high", "low", "noise"]
        assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), loaded.parameters(), strict=True))
        assert judges.extra(f"kept/{name}") == judges.extra(f"models/judge/{name}")
        assert judges.extra(f"kept/{name}")["recipe"]["steps"] == 3
    assert json.loads(Path("reports/networks/judge.json").read_text()) == report


def test_trained_twice_the_bytes_are_the_same(workspace: Path) -> None:
    written = []
    for _ in range(2):
        pipeline.judge(configured(weights=None))
        written.append({p.name: p.read_bytes() for p in sorted(Path("models/judge/panns").iterdir())})
    assert written[0] == written[1]


def test_judges_hear_16_khz_whatever_the_corpus_has(workspace: Path) -> None:
    wavs, labels = reading.labelled("val", configured(None, sample_rate=32000), 16000)
    assert wavs.shape == (4, 4000)
    assert wavs.dtype == np.int16
    assert len(labels) == 4


def test_a_section_takes_the_network_that_its_metrics_are_defined_on(workspace: Path) -> None:
    with pytest.raises(ConfigError, match=r"networks.judge.panns.backend is 'vggish'"):
        pipeline.judge(configured(None, panns="vggish"))
