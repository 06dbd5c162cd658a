"""Text that people wrote, on whatever machine."""

from pathlib import Path

import pytest

from siren.cli import sound
from siren.evaluate import folders
from siren.textfile import lines, read_text

PROMPTS = "a dog barks\nein Käfer summt\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_prompts_are_the_same_wherever_they_were_saved(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(PROMPTS.replace("\n", end).encode(encoding))
    assert sound._lines(str(path)) == ["a dog barks", "ein Käfer summt"]


def test_another_encoding_is_refused_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes(f"file,caption\n{PROMPTS}".encode("latin-1"))
    for read in (read_text, folders.table):
        with pytest.raises(ValueError, match=r"prompts.csv, line 3 is not UTF-8; save the file as UTF-8"):
            read(path)


def test_only_ends_of_lines_part_them() -> None:
    assert lines("a\x0cb\x85c\u2028d\r\ne\rf\n") == ["a\x0cb\x85c\u2028d", "e", "f", ""]


def test_a_table_may_have_line_ends_in_its_cells_and_labels_have_no_blanks(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('file,caption,labels\na.wav,"a dog\nbarks",dog;rain;\nb.wav,b, \n', encoding="utf-16")
    rows = folders.read_manifest(path)
    assert [(row["caption"], row["labels"]) for row in rows] == [("a dog\nbarks", ["dog", "rain"]), ("b", [])]
