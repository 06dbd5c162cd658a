"""Tokens: what is written is what the trainer reads, and shards of another codec are refused."""

import tempfile
import tracemalloc
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from siren import shards
from siren.encode import tokenize as tokens
from siren.encode.tokens import read_tokens
from siren.filter.select import SCHEMA as PAIRS
from tests.tables import write_shards

RATE, SAMPLES = 8000, 830


class Blocks:
    """A codec of two codebooks: the loudness of each block of 100 samples, and 255 minus it."""

    sample_rate, hop, num_codebooks, codebook_size = RATE, 100, 2, 256

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        wav = torch.nn.functional.pad(wav, (0, -wav.shape[1] % self.hop))
        level = (wav.unflatten(1, (-1, self.hop)).abs().mean(-1) * 255).round().long()
        return torch.stack([level, 255 - level], 1)

    def fingerprint(self) -> str:
        return "blocks"


class Words:
    """A text encoder whose state of a word is its length, padded on the right."""

    text_width = 3

    def text_states(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(caption.split()) for caption in captions)
        states = torch.full((len(captions), longest, 3), torch.nan)
        mask = torch.zeros(len(captions), longest, dtype=torch.bool)
        for row, caption in enumerate(captions):
            for column, word in enumerate(caption.split()):
                states[row, column] = float(len(word))
                mask[row, column] = True
        return states, mask

    def text_fingerprint(self) -> str:
        return "words"


def corpus() -> tuple[pa.Table, dict[str, pa.Table]]:
    wavs = np.random.default_rng(0).uniform(0, 1, (5, SAMPLES))
    names = [f"s{i}" for i in range(5)]
    segments = pa.table(
        {"id": names, "num_samples": [830, 830, 401, 400, 830], "pcm": [shards.float_to_pcm(wav) for wav in wavs]}
    )
    pairs = [
        {
            "id": name,
            "caption": text,
            "labels": ["dog"],
            "relation": None,
            "recording_id": name,
            "score": 0.5,
            "crop_offsets": [0, 150, 190, 400],
        }
        for name, text in zip(names, ["a dog", "rain", "a dog", "a much longer wording", "rain"], strict=True)
    ]
    return segments, {
        "stage1": pa.Table.from_pylist(pairs[:4], schema=PAIRS),
        "rl": pa.Table.from_pylist([pairs[2], pairs[0]], schema=PAIRS),
    }


def write(
    folder: Path, codec: Blocks, batch_size: int = 2, shard_rows: int = 3, pieces: tuple[int, ...] = (5,)
) -> None:
    table, splits = corpus()
    starts = np.cumsum((0, *pieces[:-1]))
    parts = [table.slice(start, size) for start, size in zip(starts, pieces, strict=True)]
    store(folder, codec, parts, splits, batch_size, shard_rows)


def store(
    folder: Path,
    codec: Blocks,
    segments: Iterable[pa.Table],
    splits: dict[str, pa.Table],
    batch_size: int,
    shard_rows: int,
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        there, work = Path(scratch, "segments"), Path(scratch, "work")
        for index, table in enumerate(segments):
            shards.write_table(there / f"segments-{index:05d}.parquet", table)
        loads = partial(load, codec), partial(load, Words())
        tokens.tokenize(*loads, there, splits, folder, work, RATE, batch_size, shard_rows)


def load(network: object) -> tuple[object, str]:
    return network, "cpu"


def test_the_trainer_reads_what_was_encoded(tmp_path: Path) -> None:
    write(tmp_path, Blocks())
    segments, splits = corpus()
    read = read_tokens(tmp_path, "stage1", "blocks")
    expected = Blocks().encode(torch.from_numpy(shards.pcm_to_float(segments["pcm"])))[:4]
    assert all(code.dtype == np.uint16 for code in read.codes)
    np.testing.assert_array_equal(np.stack(read.codes), expected.numpy())
    np.testing.assert_array_equal(read.codes[[3, 1]], expected.numpy()[[3, 1]])  # across the shards
    np.testing.assert_array_equal(read.crops([1, 3], [0, 2], 5), [expected[1, :, :5], expected[3, :, 2:7]])
    assert read.num_frames.tolist() == [9, 9, 5, 4]
    assert list(read.captions) == splits["stage1"]["caption"].to_pylist()
    assert [len(text) for text in read.text] == [2, 1, 2, 4]
    np.testing.assert_array_equal(read.text[3][:, 0], [1, 4, 6, 7])
    assert all(text.dtype == np.float16 and np.isfinite(text).all() for text in read.text)
    assert read.crop_offsets[0].tolist() == [0, 1, 4]  # frames, each once
    assert (read.codebook_size, read.text_width, len(read), read.shard_rows) == (256, 3, 4, [3, 1])
    assert list(read_tokens(tmp_path, "rl", "blocks").ids) == ["s2", "s0"]


def test_opening_a_split_copies_nothing_of_it(tmp_path: Path) -> None:
    write(tmp_path, Blocks())
    read, before = read_tokens(tmp_path, "stage1"), pa.total_allocated_bytes()
    for values in (read.codes[3], read.text[3], read.crop_offsets[3]):
        assert not values.flags.owndata
        assert not values.flags.writeable  # a view of the file, which is mapped for reading
    assert pa.total_allocated_bytes() == before
    with pytest.raises(IndexError, match="row 4 of 4"):
        read.codes[4]


def test_batches_pad_with_a_mask(tmp_path: Path) -> None:
    write(tmp_path, Blocks())
    states, mask = read_tokens(tmp_path, "stage1").text_batch([1, 3])
    assert states.shape == (2, 4, 3)
    assert mask.tolist() == [[True, False, False, False], [True] * 4]
    assert not states[~mask].any()


def test_metadata_name_codec_and_text_encoder(tmp_path: Path) -> None:
    write(tmp_path, Blocks())
    found = shards.metadata(tmp_path, "rl")
    assert (found["codec"], found["text_encoder"], found["frame_rate"]) == ("blocks", "words", "80.0")


def test_the_same_corpus_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, Blocks())
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [path.name for path in first] == ["rl-00000.arrow", "stage1-00000.arrow", "stage1-00001.arrow"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_what_is_read_in_pieces_gives_the_bytes_of_what_is_read_whole(tmp_path: Path) -> None:
    write(tmp_path / "whole", Blocks())
    write(tmp_path / "pieces", Blocks(), pieces=(1, 3, 0, 1))
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("whole", "pieces"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_batches_are_those_of_all_segments_however_they_are_sharded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "PIECE_ROWS", 2)
    sizes: list[int] = []

    class Counting(Blocks):
        def encode(self, wav: torch.Tensor) -> torch.Tensor:
            sizes.append(len(wav))
            return super().encode(wav)

    write(tmp_path, Counting(), pieces=(3, 2))
    assert sizes == [2, 2]  # four segments of five are in a split
    assert list(read_tokens(tmp_path, "rl", "blocks").ids) == ["s2", "s0"]
    write(tmp_path / "whole", Blocks())
    for path in sorted((tmp_path / "whole").iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_memory_does_not_grow_with_the_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times the segments: 19 MB more of sound, 8 MB more of tokens, and neither is held."""
    samples, rows = 20_000, 32
    monkeypatch.setattr(tokens, "PIECE_ROWS", rows)
    sound: list[int] = []  # bytes that Arrow holds whenever a batch is encoded

    class Hearing(Blocks):
        def encode(self, wav: torch.Tensor) -> torch.Tensor:
            sound.append(pa.total_allocated_bytes())
            return super().encode(wav)

    def peak(num_shards: int) -> int:
        def segments() -> Iterator[pa.Table]:
            for shard in range(num_shards):
                pcm = np.full((rows, samples), shard + 1, "<i2")
                names = [f"{shard:03d}-{row:02d}" for row in range(rows)]
                yield pa.table({"id": names, "num_samples": [samples] * rows, "pcm": [wav.tobytes() for wav in pcm]})

        names = [f"{shard:03d}-{row:02d}" for shard in range(num_shards) for row in range(rows)]
        wording = [f"{'a very long caption ' * 40}{name}" for name in names]
        empty = {name: [None] * len(names) for name in ("labels", "relation", "recording_id", "score")}
        pairs = {"id": names, "caption": wording, **empty, "crop_offsets": [[0]] * len(names)}
        tracemalloc.start()
        try:
            store(tmp_path, Hearing(), segments(), {"stage1": pa.table(pairs, schema=PAIRS)}, rows, rows)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is imported and cached once
    few, many = peak(1), peak(20)
    assert many - few < 2**20
    assert max(sound) - sound[0] < 4 * rows * samples * 2
    assert len(read_tokens(tmp_path, "stage1")) == 20 * rows


def test_shards_of_another_codec_are_refused(tmp_path: Path) -> None:
    write(tmp_path, Blocks())
    with pytest.raises(ValueError, match="were made with codec blocks, but this codec is other"):
        read_tokens(tmp_path, "stage1", "other")


def test_codes_out_of_range_are_refused_by_writer_and_reader(tmp_path: Path) -> None:
    small = Blocks()
    small.codebook_size = 200
    with pytest.raises(ValueError, match=r"codes \d+ to 2\d\d; it has 200"):
        write(tmp_path, small)
    write(tmp_path, Blocks())
    table = shards.read_shards(tmp_path, "rl")
    write_shards(tmp_path, "rl", table, 9, shards.metadata(tmp_path, "rl") | {"codebook_size": "200"})
    with pytest.raises(ValueError, match=r"pair s2 has code 2\d\d; the codec's codes end at 199"):
        read_tokens(tmp_path, "rl").crops([0, 1], [0, 0], 9)


def test_a_codec_of_another_rate_or_shape_and_missing_segments_are_refused(tmp_path: Path) -> None:
    other, longer = Blocks(), Blocks()
    other.sample_rate, longer.hop = 44100, 90
    with pytest.raises(ValueError, match="44100 Hz, the segments are at 8000 Hz"):
        write(tmp_path, other)
    longer.encode = Blocks().encode  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"not \(2, 2, 10\)"):
        write(tmp_path, longer)
    segments, splits = corpus()
    with pytest.raises(ValueError, match="1 pairs have no segment, among them 's3'"):
        store(tmp_path, Blocks(), [segments.slice(0, 3)], splits, 2, 3)


def test_text_states_beyond_float16_are_refused() -> None:
    class Loud(Words):
        def text_states(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            states, mask = super().text_states(captions)
            return states * 1e6, mask

    with pytest.raises(ValueError, match="float16 cannot hold, for 'rain'"):
        tokens.text_batch(Loud(), ["rain", "a dog"])  # type: ignore[arg-type]
