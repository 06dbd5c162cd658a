"""Train: the frozen neighbours and the isolated transformers. Each continues from its checkpoint on a retry."""

from prefect import flow

from flows.stage import Policy, run_name, run_phase

POLICY = Policy(retry_delays_seconds=(10, 60, 300), timeout_hours=24 * 14, tags=("gpu",))


@flow(name="train", flow_run_name=run_name)
def train(stages: list[str] | None = None, jobs: int = 1) -> None:
    """Bring the stages of this phase up to date: all of them, or those named; `jobs` at a time."""
    run_phase("train", POLICY, stages, jobs)
