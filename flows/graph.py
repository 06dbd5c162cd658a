"""The order of stages, read from DVC's graph; only which phase a stage belongs to is written here.

Phases cross in the graph (scores need a CLAP that needs captions), so a full run enters some phases twice. The
schedule follows the dependencies and stays in a phase as long as something in it can run.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

PHASES = {
    "collect": ("fetch", "segment"),
    "filter": ("caption", "score", "select", "validate"),
    "encode": ("tokenize",),
    "train": ("autocap", "codec", "clap", "imagebind", "judge", "stage1"),
    "align": ("align",),
    "evaluate": ("sample", "evaluate", "analyze", "register"),
}


def phase_of(stage: str) -> str:
    """The phase of a stage (`stage1@0` belongs with `stage1`). Raises ValueError for one that no phase names."""
    for phase, stages in PHASES.items():
        if stage.split("@")[0] in stages:
            return phase
    raise ValueError(f"stage {stage!r} of dvc.yaml belongs to no phase; add it to PHASES in flows/graph.py")


def read_graph(root: Path) -> dict[str, set[str]]:
    """Stage → the stages that it depends on, for the project at `root`, in the order of dvc.yaml."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        graph = repo.index.graph
        return {stage.addressing: {dep.addressing for dep in graph.successors(stage)} for stage in repo.index.stages}


def schedule(graph: Mapping[str, set[str]], wanted: Iterable[str] | None = None) -> list[tuple[str, list[str]]]:
    """Runs of stages of one phase, in an order that respects `graph`; only `wanted` stages, all if None.

    Raises ValueError for a wanted stage that the graph does not hold.
    """
    names = set(graph) if wanted is None else set(wanted)
    if unknown := sorted(names - set(graph)):
        raise ValueError(f"no stage {', '.join(unknown)} in dvc.yaml; there are: {', '.join(graph)}")
    order = list(PHASES)
    before = {s: ancestors(graph, s) for s in names}  # all of them: what lies between two wanted stages may not be
    waiting = sorted(names, key=lambda s: (order.index(phase_of(s)), list(graph).index(s)))
    runs: list[tuple[str, list[str]]] = []
    while waiting:
        ready = [s for s in waiting if not before[s] & set(waiting)]
        here = [s for s in ready if runs and phase_of(s) == runs[-1][0]]
        stage = (here or ready)[0]
        if not here:
            runs.append((phase_of(stage), []))
        runs[-1][1].append(stage)
        waiting.remove(stage)
    return runs


def waves(graph: Mapping[str, set[str]], names: Iterable[str]) -> list[list[str]]:
    """`names`, which are in an order that respects `graph`, cut where one depends on another of its piece.

    The stages of a piece may run at the same time.
    """
    found: list[list[str]] = []
    for name in names:
        if not found or ancestors(graph, name) & set(found[-1]):
            found.append([])
        found[-1].append(name)
    return found


def ancestors(graph: Mapping[str, set[str]], stage: str) -> set[str]:
    """Everything that a stage depends on, directly or not."""
    found: set[str] = set()
    waiting = [stage]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def select(graph: Mapping[str, set[str]], phases: list[str] | None, stages: list[str] | None) -> list[str] | None:
    """The stages that a run was asked for, by phase and by name (`stage1` for all of `stage1@k`); None for all."""
    if unknown := sorted(set(phases or []) - set(PHASES)):
        raise ValueError(f"no phase {', '.join(unknown)}; there are: {', '.join(PHASES)}")
    if phases is None and stages is None:
        return None
    chosen = [s for s in graph if phase_of(s) in (phases or [])]
    for name in stages or []:
        chosen += [s for s in graph if s.split("@")[0] == name and s != name] or [name]
    return chosen
