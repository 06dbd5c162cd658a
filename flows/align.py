"""Align: reinforcement learning of the first transformer, from its checkpoint on a retry."""

from prefect import flow

from flows.stage import Policy, run_name, run_phase

POLICY = Policy(retry_delays_seconds=(10, 60, 300), timeout_hours=24 * 7, tags=("gpu",))


@flow(name="align", flow_run_name=run_name)
def align(stages: list[str] | None = None, jobs: int = 1) -> None:
    """Bring the stages of this phase up to date: all of them, or those named; `jobs` at a time."""
    run_phase("align", POLICY, stages, jobs)
