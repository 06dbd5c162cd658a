"""siren.atomic: whoever reads sees what was there before or all that is new, and never what a dead writer left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from siren.atomic import leftovers, replacing, write_text

KILLED = """
import os, sys
from siren.atomic import replacing
with replacing(sys.argv[1]) as path:
    path.write_text("half")
    os._exit(9)
"""


def fill(place: Path, error: Exception | None = None) -> None:
    with replacing(place) as folder:
        (folder / "in").mkdir(parents=True)
        (folder / "in" / "one").touch()
        assert not place.exists()
        if error is not None:
            raise error


def test_an_error_in_the_middle_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "facts.json", "old")
    with pytest.raises(UnicodeEncodeError):  # when the file is open already
        write_text(tmp_path / "facts.json", "new\ud800")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("facts.json", "old")]


def test_what_a_killed_writer_left_is_not_read_and_not_in_the_way(tmp_path: Path) -> None:
    file = tmp_path / "part-00000.parquet"
    write_text(file, "old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(file)]).returncode == 9
    assert file.read_text() == "old"
    (left,) = (p for p in tmp_path.iterdir() if p != file)
    assert left.read_text() == "half"
    (tmp_path / ".gitignore").touch()
    assert leftovers(tmp_path) == [left]
    write_text(file, "new")
    assert file.read_text() == "new"
    assert list(tmp_path.glob("*.parquet")) == [file], "a reader that looks for shards finds the whole one only"


def test_a_writer_has_a_name_of_its_own_on_the_same_file_system(tmp_path: Path) -> None:
    file = tmp_path / "below" / ("é" * 127)  # 254 bytes, of the 255 that are allowed
    with replacing(file) as first, replacing(file, suffix=".wav") as second:
        assert first != second
        assert (first.name[0], second.suffix) == (".", ".wav")
        assert first.parent == second.parent == file.parent
        first.write_text("first")
        second.write_text("second")
    assert file.read_text() == "first", "the last to end"


def test_a_folder_appears_with_all_its_files_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"):
        fill(tmp_path / "archive", OSError("the disk is full"))
    assert list(tmp_path.iterdir()) == []
    fill(tmp_path / "archive")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "archive",
        "archive/in",
        "archive/in/one",
    ]


def test_where_it_is_asked_for_the_bytes_are_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, object]] = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(("sync", os.fstat(handle).st_size)))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append(("replace", new)), replace(old, new)))
    write_text(tmp_path / "a", "12345", sync=True)
    write_text(tmp_path / "b", "12345")
    assert done == [("sync", 5), ("replace", tmp_path / "a"), ("replace", tmp_path / "b")]
