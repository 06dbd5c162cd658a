"""Stages of collect: sources to clips, clips to segments."""

from functools import partial

from siren import tracking
from siren.config import Config
from siren.stages import places
from siren.stages.places import CLIPS, DOWNLOADS, SEGMENTS


def fetch(config: Config) -> None:
    """Sources to clips: files, one manifest, and what was left out."""
    from siren import engine, shards
    from siren.collect import sources
    from siren.collect.fetch.download import Downloader, Limits

    settings, licences, where = config.collect.fetch, config.collect.licences, engine.chosen()
    limits = where.shared(partial(Limits, settings.download.max_bytes_per_second))
    with (
        tracking.stage("fetch", config, sections=("seed", "audio", "collect.fetch", "collect.licences")) as run,
        Downloader(DOWNLOADS, settings.download, limits) as downloader,
    ):
        clips, quarantine, total = sources.collect(
            settings.sources, CLIPS, config.audio, config.seed, downloader, licences, where
        )
        shards.write_table(CLIPS / "clips.parquet", clips)
        counts = {"in": total, "out": clips.num_rows, "quarantined": len(quarantine)}
        run.summary(places.account(run, "fetch", CLIPS, counts, quarantine))
        if not clips.num_rows:
            why = quarantine[0]["detail"] if quarantine else "the sources are empty"
            raise ValueError(f"no clip is left, e.g. because: {why}; see {CLIPS}/quarantine.parquet")


def segment(config: Config) -> None:
    """Clips to mono segments of one rate and length, with something to hear in them."""
    import pyarrow.parquet as pq

    from siren import engine
    from siren.collect import segment as segments

    with tracking.stage("segment", config, sections=("audio", "collect.segment")) as run:
        clips = pq.read_table(CLIPS / "clips.parquet")
        settings, where = config.collect.segment, engine.chosen()
        work = places.pieces("segment", [CLIPS / "clips.parquet"], settings, config.audio)
        quarantine, counts = segments.segment(clips, CLIPS, SEGMENTS, settings, config.audio, work, where)
        fixes = {name: counts.pop(name) for name in list(counts) if name.startswith("fix/")}
        run.summary(places.account(run, "segment", SEGMENTS, counts, quarantine) | fixes)
        places.made("segment")
