"""The stage `autocap`: nothing where nobody asks, trained on people's captions, loaded from a folder; and `caption`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from siren import config as settings
from siren import shards
from siren.config import BeamSearch, ConfigError
from siren.filter.caption.autocap import Listener
from siren.filter.caption.protocol import Answer
from siren.networks import store
from siren.networks.autocap import AutoCap
from siren.stages import pipeline, places
from tests.networks.test_autocap import settings as small
from tests.tables import write_shards
from tests.train.test_autocap import corpus, stages

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with 20 segments: 16 that people have captioned, of all splits, and 4 without any words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIREN_EXPORT", "0")
    wavs, captions, known, relations = corpus(20)
    columns = {
        "id": [f"clip-{index}" for index in range(20)],
        "split": (["train"] * 10 + ["val"] * 3 + ["test"] * 3) + ["train"] * 4,
        "captions": [*captions[:16], *[[]] * 4],
        "labels": [[]] * 20,
        "relation": relations,
        "title": [one["title"] for one in known],
        "num_samples": [25600] * 20,
        "pcm": [wav.tobytes() for wav in wavs],
    }
    write_shards(places.SEGMENTS, "segments", pa.table(columns), rows_per_shard=8)
    return tmp_path


def short(table: pa.Table, samples: int) -> pa.Table:
    """The same segments with so much true sound, padded."""
    pcm = [one[: 2 * samples] + bytes(len(one) - 2 * samples) for one in table["pcm"].to_pylist()]
    for name, values in (("pcm", pcm), ("num_samples", [samples] * len(pcm))):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    return table


def configured(tmp_path: Path, weights: str | None = None) -> settings.Config:
    whole = settings.load(PARAMS)
    chosen = small(tmp_path / "clap", **stages(2), weights=weights)
    caption = replace(whole.filter.caption, captioner="autocap", autocap=BeamSearch("models/autocap", 1, 8))
    return replace(
        whole, networks=replace(whole.networks, autocap=chosen), filter=replace(whole.filter, caption=caption)
    )


def test_where_the_settings_ask_for_none_there_is_none(workspace: Path) -> None:
    pipeline.autocap(settings.load(PARAMS))
    assert store.read_sidecar("models/autocap")["kind"] == "none"
    assert json.loads(Path("reports/networks/autocap.json").read_text()) == {}


def test_trained_or_loaded_it_is_measured_and_captions_what_nobody_did(workspace: Path) -> None:
    pipeline.autocap(configured(workspace))
    report = Path("reports/networks/autocap.json").read_text()
    figures = json.loads(report)["val"]["sound and metadata"]
    assert figures["cider_d"]["count"] == 3
    assert figures["cider_d"]["low"] <= figures["cider_d"]["value"] <= figures["cider_d"]["high"]
    assert [one["id"] for one in figures["examples"]] == ["clip-10", "clip-11", "clip-12"]
    assert -1 <= figures["clap_score"] <= 1
    assert not list(Path(".siren/checkpoints").rglob("*.safetensors")), "nothing is left to resume"

    kept = (workspace / "models" / "autocap").rename(workspace / "kept")
    pipeline.autocap(configured(workspace, weights="kept"))
    for file in ("model.safetensors", "config.json", "tokenizer.json", "clap/model.safetensors"):
        assert (workspace / "models" / "autocap" / file).read_bytes() == (kept / file).read_bytes()
    assert Path("reports/networks/autocap.json").read_text() == report

    pipeline.caption(configured(workspace))
    table = pq.read_table("data/captions/captions.parquet")
    quarantine = pq.read_table("data/captions/quarantine.parquet")
    who = dict(zip(table["id"].to_pylist(), table["captioner"].to_pylist(), strict=True))
    assert [who[f"clip-{index}"] for index in range(16)] == ["human"] * 16
    left = {name: origin for name, origin in who.items() if origin != "human"}
    assert set(left.values()) <= {"autocap"}
    assert set(left) | set(quarantine["item"].to_pylist()) == {f"clip-{index}" for index in range(16, 20)}
    made_with = json.loads(table.schema.metadata[b"made_with"])["describe"]
    assert made_with["sha256"] == store.read_sidecar("models/autocap")["sha256"]


def test_short_segments_are_heard_the_same_when_it_trains_is_measured_and_captions(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = shards.read_shards(places.SEGMENTS, "segments", None)
    write_shards(places.SEGMENTS, "segments", short(table, 6000), rows_per_shard=8)
    heard: list[np.ndarray] = []
    true_hear = AutoCap.hear

    def hear(self: AutoCap, wav: torch.Tensor) -> Any:
        heard.append(wav.numpy())
        return true_hear(self, wav)

    monkeypatch.setattr(AutoCap, "hear", hear)
    config = configured(workspace)
    assert config.networks.autocap is not None
    plain = replace(config.networks.autocap, augment_share=0.0)
    pipeline.autocap(replace(config, networks=replace(config.networks, autocap=plain)))
    pipeline.caption(config)
    for wav in np.concatenate(heard):  # four times whole, then silence
        assert np.array_equal(wav[:24000], np.tile(wav[:6000], 4))
        assert wav[:6000].any()
        assert not wav[24000:].any()


def test_pieces_of_captions_belong_to_the_network_that_wrote_them(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.autocap(configured(workspace))
    monkeypatch.setattr(places, "made", lambda name: None)  # as if it had been stopped before its end
    folders = []
    for _ in range(2):
        pipeline.caption(configured(workspace))
        folders.append([path.name for path in (places.PIECES / "caption").iterdir()])
        with Path("models/autocap/clap/tokenizer.json").open("a") as file:
            file.write(" ")
    assert folders[0] != folders[1]


def test_a_captioner_without_its_network_is_refused_at_once(workspace: Path) -> None:
    config = configured(workspace)
    with pytest.raises(ConfigError, match="captioner=autocap-demo"):
        replace(config, networks=replace(config.networks, autocap=None))
    elsewhere = replace(config.filter.caption, autocap=BeamSearch("elsewhere", 1, 8))
    replace(
        config,
        networks=replace(config.networks, autocap=None),
        filter=replace(config.filter, caption=elsewhere),
    )


def test_captions_that_it_wrote_can_be_heard(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.autocap(settings.load(PARAMS))
    monkeypatch.setattr(Listener, "__call__", lambda self, clips: [[Answer("rain/wind")] for _ in clips])
    pipeline.caption(configured(workspace))
    kept = {path.name for path in Path(".siren/runs").glob("*-caption-*/artifacts/audio/*.wav")}
    assert kept == {f"clip-{index} rain wind.wav" for index in range(16, 20)}
