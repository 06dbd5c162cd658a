"""Encode: the corpus as shards of codes and text states."""

from prefect import flow

from flows.stage import Policy, run_name, run_phase

POLICY = Policy(tags=("gpu",))


@flow(name="encode", flow_run_name=run_name)
def encode(stages: list[str] | None = None, jobs: int = 1) -> None:
    """Bring the stages of this phase up to date: all of them, or those named; `jobs` at a time."""
    run_phase("encode", POLICY, stages, jobs)
