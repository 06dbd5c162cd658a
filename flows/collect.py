"""Collect: sources to clips to segments. Sources may lie behind a network, so they are tried more often."""

from prefect import flow

from flows.stage import Policy, run_name, run_phase

POLICY = Policy(retry_delays_seconds=(10, 60, 300), tags=("download",))


@flow(name="collect", flow_run_name=run_name)
def collect(stages: list[str] | None = None, jobs: int = 1) -> None:
    """Bring the stages of this phase up to date: all of them, or those named; `jobs` at a time."""
    run_phase("collect", POLICY, stages, jobs)
