"""AutoCap as the captioner of a corpus: who is asked, with what, and what is recorded."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from siren.config import BeamSearch, Caption, ConfigError
from siren.filter.caption import Captioning, captioners
from siren.filter.caption.autocap import Listener, fit, metadata
from siren.filter.caption.protocol import Clip
from siren.networks import autocap
from siren.stages import places
from tests.networks.test_autocap import CAPTIONS, network, settings  # noqa: F401
from tests.networks.test_autocap import clap_folder as clap_folder


@pytest.fixture(scope="module")
def folder(network: autocap.AutoCap, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    made = tmp_path_factory.mktemp("autocap")
    autocap.save(made, network, {"licence": "Apache-2.0"})
    return made


def segments(count: int, samples: int = 12800) -> pa.Table:
    """Noises of `samples` true samples, at 8 kHz; the first has a caption of a person's."""
    random = np.random.default_rng(0)
    pcm = (3000 * random.standard_normal((count, 12800))).astype("<i2")
    rows = [
        {
            "id": f"s{index}",
            "captions": ["Rain falls."] if index == 0 else [],
            "labels": ["dog_bark"],
            "relation": "one",
            "title": "A dog",
            "num_samples": samples,
            "pcm": wav.tobytes(),
        }
        for index, wav in enumerate(pcm)
    ]
    return pa.Table.from_pylist(rows)


def caption(folder: Path, batch_size: int = 4) -> Captioning:
    return Captioning(Caption("autocap", None, None, BeamSearch(str(folder), 2, batch_size)), 0, 8000)


def test_only_what_nobody_captioned_is_heard_in_batches_of_any_size(folder: Path) -> None:
    results = [caption(folder, size)(segments(6)) for size in (1, 4)]
    assert [len(quarantine) + table.num_rows for table, quarantine, _ in results] == [6, 6]
    assert results[0][1] == results[1][1]
    found = [table.to_pylist() for table, _, _ in results]
    assert found[0] == found[1]
    assert found[0][0]["captioner"] == "human"
    assert [row["captioner"] for row in found[0][1:]] == ["autocap"] * (len(found[0]) - 1)


def test_what_is_known_of_a_clip_is_read_and_who_wrote_is_recorded(folder: Path) -> None:
    assert metadata(Clip("a", ("rain", "dog_bark"), "then", "My garden")) == {
        "labels": "dog bark, rain",
        "title": "My garden",
    }
    assert metadata(Clip("a", title=" \t\u3000 ")) == {"labels": "", "title": ""}
    made = caption(folder)
    assert made.loads
    assert not made.only_asks
    told = made.provenance()["describe"]
    assert told["model"] == "autocap"
    assert len(told["sha256"]) == 64


def test_a_loaded_captioner_can_be_sent_to_another_process(folder: Path) -> None:
    listener = Listener(BeamSearch(str(folder), 1, 4))
    clips = [Clip("a", wav=np.ones(8000, np.float32) / 9, sample_rate=8000)]
    before = listener(clips)
    assert pickle.loads(pickle.dumps(listener))(clips) == before


@pytest.mark.parametrize(("length", "expected"), [(3, [1, 2, 3]), (7, [1, 2, 3, 1, 2, 3, 0]), (2, [1, 2])])
def test_clips_are_brought_to_the_length_that_the_tower_hears(length: int, expected: list[int]) -> None:
    assert fit(np.array([1, 2, 3], np.float32), length).tolist() == expected


def test_settings_that_name_no_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="captioner=autocap"):
        captioners.captioner(Caption("autocap", None, None), 0)
    places.no_network(tmp_path)
    with pytest.raises(ValueError, match="of kind 'none'"):
        caption(tmp_path)(segments(2))


def test_a_segment_shorter_than_a_tenth_of_a_second_is_heard_too(folder: Path) -> None:
    table, quarantine, _ = caption(folder)(segments(2, samples=700))
    assert table.num_rows + len(quarantine) == 2
