"""A small corpus of synthetic scenes, and the data stages in their order."""

from dataclasses import replace
from typing import Any

from siren import config
from siren.config import Config, Source
from siren.stages import pipeline
from tests.processes import ROOT

SCENES = {"train": 24, "val": 4, "test_one": 12, "test_two": 4, "broken": 3, "seconds": 1.6}
STAGES = ("fetch", "segment", "caption", "score", "select", "validate", "tokenize")


def configured(**selection: Any) -> Config:
    """The committed settings with 47 clips, three of them broken; `selection` is for `filter.select`."""
    found = config.load(ROOT / "params.yaml")
    fetch = replace(found.collect.fetch, sources=(Source("scenes", dict(SCENES)),))
    select = replace(found.filter.select, **{"rl_prompts": 8, "val_pairs": 4, **selection})
    collect, chosen = replace(found.collect, fetch=fetch), replace(found.filter, select=select)
    return replace(found, collect=collect, filter=chosen)


def run(settings: Config, *but: str) -> None:
    """Every data stage but these, in the working directory."""
    for name in STAGES:
        if name not in but:
            pipeline.STAGES[name](settings)
