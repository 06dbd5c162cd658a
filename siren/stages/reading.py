"""What several stages read from the files of others, as arrays and tables."""

from collections.abc import Sequence
from typing import Any

from siren.config import Config
from siren.stages import places
from siren.stages.places import CAPTIONS, MODELS, SEGMENTS


def prompt_rows(prompts: Any) -> list[dict[str, Any]]:
    """Prompts of token shards as the evaluation takes them."""
    columns = zip(prompts.ids, prompts.captions, prompts.labels, prompts.relations, strict=True)
    return [{"id": i, "caption": c, "labels": labels, "relation": r} for i, c, labels, r in columns]


def recordings(ids: Sequence[str]) -> Any:
    """The real clips of these ids, float32 [N, S]. Raises ValueError for an id that no segment has."""
    from siren import shards

    table = shards.read_shards(SEGMENTS, "segments", ["id", "pcm"])
    rows = {name: row for row, name in enumerate(table["id"].to_pylist())}
    if missing := [name for name in ids if name not in rows]:
        raise ValueError(f"{len(missing)} test prompts have no segment, among them {missing[0]!r}; run `siren sample`")
    return shards.pcm_to_float(table["pcm"].take([rows[name] for name in ids]))


def load_codec() -> tuple[Any, str]:
    """The codec and its device, in the process that works with it."""
    from siren.networks import codec as codecs

    return codecs.load(MODELS / "codec", places.device()), places.device()


def load_clap() -> tuple[Any, str]:
    """Likewise, the text-audio encoder."""
    from siren.networks import clap as claps

    return claps.load(MODELS / "clap", places.device()), places.device()


def waveforms(split: str) -> Any:
    """int16 [N, S] of the segments of one split. Raises ValueError where there are none."""
    import pyarrow.compute as pc

    from siren import shards

    table = shards.read_shards(SEGMENTS, "segments", ["split", "pcm"])
    table = table.filter(pc.equal(table["split"], split))
    if table.num_rows == 0:
        raise ValueError(f"no segment of split {split!r} in {SEGMENTS}; give the source clips of that split")
    return shards.pcm_array(table["pcm"])


def captioned(split: str) -> tuple[Any, list[str], list[list[str]], list[list[str]], list[str | None]]:
    """Segments of one split that have a caption: int16 [N, S], the caption, all its wordings, labels, relation."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from siren import shards

    captions = pq.read_table(CAPTIONS / "captions.parquet", columns=["id", "caption", "candidates"])
    table = shards.read_shards(SEGMENTS, "segments", ["id", "split", "labels", "relation", "pcm"])
    table = table.filter(pc.and_(pc.equal(table["split"], split), pc.is_in(table["id"], captions["id"])))
    found = {row.pop("id"): row for row in captions.to_pylist()}
    rows = [found[name] for name in table["id"].to_pylist()]
    if split == "train" and not rows:
        raise ValueError(f"no segment of split {split!r} in {SEGMENTS} has a caption; give the source such clips")
    wordings = [list(dict.fromkeys([row["caption"], *(row["candidates"] or [])])) for row in rows]
    wavs = shards.pcm_array(table["pcm"]) if rows else np.zeros((0, 0), np.int16)
    labels, relations = table["labels"].to_pylist(), table["relation"].to_pylist()
    for index, row in enumerate(rows):
        if not labels[index]:  # clips mean the same where their labels do; one without means what its caption says
            labels[index], relations[index] = [row["caption"]], "caption"
    return wavs, [row["caption"] for row in rows], wordings, labels, relations


def described(split: str) -> tuple[list[str], list[Any], list[list[str]], list[dict[str, str]], list[str | None]]:
    """Segments of one split that people have captioned: ids, int16 [S] of each without its padding, the captions,
    metadata, relations.
    """
    import pyarrow.compute as pc

    from siren import shards
    from siren.filter import caption
    from siren.filter.caption.autocap import metadata

    table = shards.read_shards(SEGMENTS, "segments", [*caption.SOURCE_COLUMNS, *caption.SOUND_COLUMNS, "split"])
    table = table.filter(pc.equal(table["split"], split))
    rows = table.drop_columns(["pcm"]).to_pylist()
    captions = [caption.left(caption.of_people(row["captions"])) for row in rows]
    kept = [index for index, found in enumerate(captions) if found]
    if split == "train" and not kept:
        raise ValueError(f"no segment of split {split!r} in {SEGMENTS} has a caption of people; give a source that has")
    padded: Any = shards.pcm_array(table["pcm"].take(kept)) if kept else []
    rows, captions = [rows[index] for index in kept], [captions[index] for index in kept]
    wavs = [wav[: row["num_samples"]] for row, wav in zip(rows, padded, strict=True)]
    known = [metadata(caption.clip_of(row)) for row in rows]
    return [row["id"] for row in rows], wavs, captions, known, [row["relation"] for row in rows]


def labelled(split: str, config: Config, sample_rate: int) -> tuple[Any, list[list[str]]]:
    """Segments of one split as int16 [N, S] at `sample_rate`, with their labels; none where the split has none."""
    import numpy as np
    import pyarrow.compute as pc

    from siren import audio, shards

    table = shards.read_shards(SEGMENTS, "segments", ["split", "labels", "pcm"])
    table = table.filter(pc.equal(table["split"], split))
    wavs, labels = shards.pcm_array(table["pcm"]), table["labels"].to_pylist()
    if config.audio.sample_rate != sample_rate and len(wavs):
        scale = np.float32(shards.FULL_SCALE)
        moved = (audio.resample(wav / scale, config.audio.sample_rate, sample_rate) for wav in wavs)
        wavs = np.stack([np.round(np.clip(wav, -1, 1) * scale).astype(np.int16) for wav in moved])
    return wavs, labels
