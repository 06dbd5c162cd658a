"""Where clips come from. A source is one file and one entry of `SOURCES`.

A source is a function `(options, folder, audio, seed) -> (rows, quarantine)`: it writes sound files under
`folder/audio` and returns one row for each clip (the columns of `CLIPS_SCHEMA`) and one row for each thing it had
to leave out, with the reason.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from siren.collect.sources import scenes
from siren.config import Audio, ConfigError

Rows = list[dict[str, Any]]
SourceFunction = Callable[[dict[str, Any], Path, Audio, int], tuple[Rows, Rows]]

SOURCES: dict[str, SourceFunction] = {"scenes": scenes.fetch}

CLIPS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),  # below the folder of the clips
        ("source", pa.string()),
        ("recording_id", pa.string()),  # clips of one recording never go to two splits
        ("start", pa.float64()),  # seconds within the recording, where known
        ("end", pa.float64()),
        ("captions", pa.list_(pa.string())),
        ("labels", pa.list_(pa.string())),  # in the order of the events
        ("relation", pa.string()),  # one | while | then, where known
        ("licence", pa.string()),
        ("author", pa.string()),
        ("split", pa.string()),  # a hint: train | val | test
        ("sha256", pa.string()),  # of the file
    ]
)


def find(kind: str) -> SourceFunction:
    """The source of this name. Raises `ConfigError` naming those there are."""
    if kind not in SOURCES:
        raise ConfigError(f"collect.fetch.sources has kind {kind!r}; there are {', '.join(SOURCES)}")
    return SOURCES[kind]
