"""Evaluate: samples, metrics, the report, and the model's version in the registry."""

from prefect import flow

from flows.stage import Policy, run_name, run_phase

POLICY = Policy(tags=("gpu",))


@flow(name="evaluate", flow_run_name=run_name)
def evaluate(stages: list[str] | None = None, jobs: int = 1) -> None:
    """Bring the stages of this phase up to date: all of them, or those named; `jobs` at a time."""
    run_phase("evaluate", POLICY, stages, jobs)
