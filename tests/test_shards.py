"""siren.shards: what is written is what is read, and a half-written shard is never seen."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siren import shards
from tests.tables import write_shards

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(max_size=8),
            "score": st.floats(-1, 1, width=32),
            "labels": st.lists(st.text(max_size=4), max_size=3),
            "pcm": st.binary(max_size=12),
            "relation": st.none() | st.sampled_from(["while", "then"]),
        }
    ),
    max_size=12,
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("score", pa.float32()),
        ("labels", pa.list_(pa.string())),
        ("pcm", pa.binary()),
        ("relation", pa.string()),
    ]
)


@given(rows=ROWS, rows_per_shard=st.integers(1, 5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_write_then_read_is_identity(tmp_path: Path, rows: list[dict], rows_per_shard: int) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    paths = write_shards(tmp_path, "part", table, rows_per_shard, {"codec": "abc"})
    assert len(paths) == max(1, -(-len(rows) // rows_per_shard))  # and none is left of an earlier, longer table
    back = shards.read_shards(tmp_path, "part")
    assert back.replace_schema_metadata(None).to_pylist() == rows
    assert shards.metadata(tmp_path, "part") == {"codec": "abc"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in paths]


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"]})
    for name in ("x", "y"):
        shards.write_table(tmp_path / name, table, {"k": "v"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_missing_shard_is_an_error_not_a_shorter_table(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, "part", pa.table({"id": list("abcdef")}), 2)
    paths[1].unlink()
    with pytest.raises(ValueError, match=r"not complete .*part-00000.parquet, part-00002.parquet"):
        shards.read_shards(tmp_path, "part")
    with pytest.raises(ValueError, match="found: none"):
        shards.read_shards(tmp_path, "other")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards.write_table(tmp_path / "a.parquet", pa.table({"id": ["old"]}))

    def killed(table: pa.Table, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(shards.pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        shards.write_table(tmp_path / "a.parquet", pa.table({"id": ["new"]}))
    monkeypatch.undo()
    assert shards.pq.read_table(tmp_path / "a.parquet").to_pylist() == [{"id": "old"}]
    assert len(list(tmp_path.iterdir())) == 1


@given(values=st.lists(st.integers(-32768, 32767), max_size=20))
def test_int16_survives_float_and_back(values: list[int]) -> None:
    pcm = np.array(values, "<i2").tobytes()
    assert shards.float_to_pcm(shards.pcm_to_float(pcm)) == pcm


def test_loud_values_are_clipped_and_nan_refused() -> None:
    assert shards.pcm_array(shards.float_to_pcm(np.array([3.0, -3.0]))).tolist() == [32767, -32768]
    with pytest.raises(ValueError, match="NaN"):
        shards.float_to_pcm(np.array([np.nan]))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_waveforms_is_a_matrix(kind: pa.DataType) -> None:
    wavs = np.arange(12, dtype="<i2").reshape(4, 3)
    column = pa.chunked_array(
        [pa.array([row.tobytes() for row in wavs[:3]], kind)[1:], pa.array([wavs[3].tobytes()], kind)]
    )
    np.testing.assert_array_equal(shards.pcm_array(column), wavs[1:])
    np.testing.assert_allclose(shards.pcm_to_float(column) * shards.FULL_SCALE, wavs[1:])


def test_waveforms_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        shards.pcm_array(pa.array([b"ab", b"abcd"], pa.binary()))


def test_a_table_that_is_too_large_for_one_chunk_is_written_in_groups_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts within lists within structures, as captions have them: Arrow cannot read more than 2 GiB of one group."""
    kind = pa.list_(pa.struct([("raw", pa.string()), ("steps", pa.list_(pa.string()))]))
    rows = [[{"raw": f"{row}" * 50, "steps": ["a", "b" * row]}] * 3 for row in range(40)]
    parts = [pa.table({"history": pa.array(rows[start : start + 7], kind)}) for start in range(0, 40, 7)]
    small = shards.joined(parts)
    assert small["history"].num_chunks == 1
    for name in ("LARGEST", "GROUP"):
        monkeypatch.setattr(shards, name, small.nbytes // 5)
    large = shards.joined(parts)
    assert large["history"].num_chunks == len(parts)
    shards.write_table(tmp_path / "a.parquet", large)
    file = pq.ParquetFile(tmp_path / "a.parquet")
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert (len(sizes) >= 5, sum(sizes)) == (True, 40)
    assert shards.read_table(tmp_path / "a.parquet").to_pylist() == small.to_pylist() == [{"history": r} for r in rows]
