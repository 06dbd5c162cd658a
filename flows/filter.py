"""Filter: captions, scores and the choice of the corpus. The data gate fails for a reason: one retry is enough."""

from prefect import flow

from flows.stage import Policy, run_name, run_phase

POLICY = Policy(retry_delays_seconds=(30,))


@flow(name="filter", flow_run_name=run_name)
def filter(stages: list[str] | None = None, jobs: int = 1) -> None:
    """Bring the stages of this phase up to date: all of them, or those named; `jobs` at a time."""
    run_phase("filter", POLICY, stages, jobs)
