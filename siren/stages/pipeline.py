"""The pipeline, in order: each stage reads its files, calls the library, writes its files and logs.

A stage takes the settings and nothing else (`stage1` its transformer too); its name is the DVC stage, the CLI verb, the
Prefect task and the MLflow run. Only `siren.stages` knows paths. Heavy imports are inside the stages, so that each
process loads only what it uses.
"""

from collections.abc import Callable
from typing import Any

from siren.stages.align import align
from siren.stages.collect import fetch, segment
from siren.stages.encode import tokenize
from siren.stages.evaluate import analyze, evaluate, register, sample
from siren.stages.filter import caption, score, select, validate
from siren.stages.train import autocap, clap, codec, imagebind, judge, stage1

STAGES: dict[str, Callable[..., Any]] = {
    stage.__name__: stage
    for stage in (
        fetch,  # collect
        segment,
        autocap,  # train: the frozen networks, the captioner first
        caption,  # filter
        codec,  # train
        clap,
        imagebind,
        judge,
        score,  # filter
        select,
        validate,
        tokenize,  # encode
        stage1,  # train
        align,  # align
        sample,  # evaluate
        evaluate,
        analyze,
        register,
    )
}
