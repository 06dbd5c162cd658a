"""The data stages one after the other in an empty folder, networks stood in for: files, figures, last lines."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from siren import audio, shards
from siren import config as settings
from siren.collect import segment
from siren.encode.tokens import read_tokens
from siren.evaluate import analyze
from siren.evaluate.prompts import counts, index
from siren.networks import clap as claps
from siren.networks import codec as codecs
from siren.stages import pipeline, reading
from siren.train.contrastive import Pool
from tests import corpus
from tests.encode.test_tokenize import Blocks, Words

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of great_expectations and what it imports
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = Path(__file__).resolve().parents[2]


class SixteenKilohertz(Blocks):
    sample_rate = 16000


class Agreeable(Words):
    """Finds every sound to match every caption."""

    sample_rate = 16000

    def embed_text(self, captions: list[str]) -> torch.Tensor:
        return torch.ones(len(captions), 1)

    def embed_audio(self, wav: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(wav), 1)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Config:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIREN_EXPORT", "0")
    monkeypatch.setattr(claps, "load", lambda *_, **__: Agreeable())
    monkeypatch.setattr(codecs, "load", lambda *_, **__: SixteenKilohertz())
    return corpus.configured()


def test_data_flows_from_sources_to_tokens(config: settings.Config, capsys: pytest.CaptureFixture[str]) -> None:
    corpus.run(config)
    timed = re.compile(r", \d+\.\d s, [\d.e+]+ a second$")
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said if not timed.search(line)] == ["select", "validate"]
    assert [timed.sub("", line) for line in said] == [
        "fetch: 47 in, 47 out, 0 quarantined",
        "segment: 47 in, 44 out, 3 quarantined (empty 2, truncated 1)",
        "caption: 44 in, 44 out, 0 quarantined",
        "score: 44 in, 44 out, 0 quarantined",
        "select: segments 44, scored 44, train 24, above_min_score 24, with_a_good_crop 24, stage1 24, rl 8, val 4, "
        "test 16",
        "validate: 44 demands on 9 tables, 0 failing",
        "tokenize: 52 in, 52 out (rl 8, stage1 24, test 16, val 4)",
    ]
    tokens = read_tokens("data/tokens", "test", "blocks")
    assert np.stack(tokens.codes).shape == (16, 2, 256)
    assert list(tokens.captions) == pq.read_table("data/splits/test.parquet")["caption"].to_pylist()
    assert json.loads(Path("data/segments/summary.json").read_text())["quarantined"] == 3
    reasons = shards.read_quarantine("data/segments")["reason"].to_pylist()
    assert sorted(reasons) == ["empty", "empty", "truncated"]
    assert "all 44 demands hold" in Path("reports/data/index.html").read_text()


def test_a_failing_gate_stops_but_leaves_its_report(config: settings.Config) -> None:
    corpus.run(config, "validate", "tokenize")
    strict = dataclasses.replace(config.filter, validate=settings.Validate(max_quarantined=0.01))
    with pytest.raises(ValueError, match=r"accounting: .*share_quarantined"):
        pipeline.validate(dataclasses.replace(config, filter=strict))
    assert "1 of 44 demands fail" in Path("reports/data/index.html").read_text()


def test_a_source_without_one_good_row_is_an_error_that_names_a_line(config: settings.Config) -> None:
    Path("sounds").mkdir()
    Path("sounds/manifest.csv").write_text("file,caption\n../secret.wav,a dog\n")
    source = settings.Source("folder", {"path": "sounds"})
    fetch = dataclasses.replace(config.collect.fetch, sources=(source,))
    config = dataclasses.replace(config, collect=dataclasses.replace(config.collect, fetch=fetch))
    with pytest.raises(ValueError, match=r"no clip is left, .* manifest.csv line 2: file '../secret.wav' lies outside"):
        pipeline.fetch(config)
    assert shards.read_quarantine("data/clips")["reason"].to_pylist() == ["path_escapes"]


def test_clips_without_labels_mean_what_their_captions_say(config: settings.Config) -> None:
    """From the source to what is trained and judged, each place that reads labels."""
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    captions = ["a low hum", "a high beep", "a low hum", "rain", "wind", "a bell", "a hum", "a beep", "a hum", "a beep"]
    random = np.random.default_rng(0)
    for clip in range(len(splits)):
        burst = random.normal(0, 0.2, 25600) * (np.arange(25600) % 12800 < 6400)
        audio.write(Path(f"sounds/{clip}.wav"), burst.astype(np.float32), 16000)
    rows = [f"{i}.wav,{caption},{split}" for i, (caption, split) in enumerate(zip(captions, splits, strict=True))]
    Path("sounds/manifest.csv").write_text("\n".join(["file,caption,split", *rows]) + "\n")
    fetch = dataclasses.replace(config.collect.fetch, sources=(settings.Source("folder", {"path": "sounds"}),))
    selection = dataclasses.replace(config.filter.select, rl_prompts=2, val_pairs=2, test_pairs=2)
    config = dataclasses.replace(
        config,
        collect=dataclasses.replace(config.collect, fetch=fetch),
        filter=dataclasses.replace(config.filter, select=selection),
    )
    corpus.run(config, "validate")

    tokens = {split: read_tokens("data/tokens", split, "blocks") for split in ("stage1", "rl", "test")}
    assert [len(found) for found in tokens.values()] == [6, 2, 2]
    for found in tokens.values():
        assert [*found.labels] == [[]] * len(found)
        assert set(found.relations) == {None}

    _, found, wordings, labels, relations = reading.captioned("train")
    assert sorted(found) == sorted(captions[:6])
    assert (labels, set(relations)) == ([[caption] for caption in found], {"caption"})
    pool = Pool(wordings, labels, relations)
    assert len(pool.clips) == 5  # "a low hum" is said of two clips, which therefore mean the same
    assert all(not others for others in pool.contrasts.values())  # no events that could be in another order

    assert analyze.Clips.of(tokens["stage1"]).labels == [None] * 6  # nothing to probe for
    prompts = [
        dict(zip(("id", "caption", "labels", "relation"), row, strict=True))
        for row in zip(
            *(getattr(tokens["test"], name) for name in ("ids", "captions", "labels", "relations")), strict=True
        )
    ]
    assert counts(index(prompts, ["dog", "rain"])) == {
        "all": 2,
        "one_event": 0,
        "two_events": 0,
        "then": 0,
        "not_judged": 2,
    }
    assert reading.labelled("train", config, 16000)[1] == [[]] * 6  # no judge is trained on them


def test_shards_of_the_paper_s_scale_have_64_to_256_megabytes() -> None:
    """Token shards: codes and 16 text states; segments: int16, before they are packed (by a quarter, measured)."""
    found = yaml.safe_load((ROOT / "conf" / "scale" / "1.6b.yaml").read_text())
    codec, samples = found["networks"]["codec"]["architecture"], settings.Audio(**found["audio"]).segment_samples
    row = 2 * (codec["num_codebooks"] * samples // math.prod(codec["rates"]) + 16 * 768)
    segments = segment.SHARD_BYTES // (2 * samples) * 2 * samples
    for size in (found["encode"]["tokenize"]["shard_rows"] * row, 0.75 * segments):
        assert 64e6 <= size <= 256e6
