"""Text that people wrote: UTF-8, with or without the mark that Windows puts before it, or UTF-16 with its mark."""

import codecs
import re
from pathlib import Path


def read_text(path: Path) -> str:
    """The text, ends of lines as they are. Raises ValueError for another encoding, which would have to be guessed."""
    data = path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8; save the file as UTF-8") from None


def lines(text: str) -> list[str]:
    """Its lines. Only ends of lines part them, not form feeds and the like, as in `str.splitlines`."""
    return re.split(r"\r\n|\r|\n", text)
