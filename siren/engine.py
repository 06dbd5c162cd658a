"""Where work runs: in processes of this machine, or on a Ray cluster. The only importer of ray.

Work is `make() -> work` and items for it: `make` is called in each process that works, so that a network is loaded
there and once; `work(item)` gives something small. Results come in the order of the items. What is large goes through
files that all nodes see (`shards`), and so does what survives: a shard is written under a temporary name and renamed, a
rerun takes those that are there, and a worker that dies costs the shard it was at. Because items are the same whatever
runs them, so are the bytes.

Where it runs is in the environment (decision 10), because it must not make DVC repeat anything: SIREN_ENGINE (local,
ray), SIREN_WORKERS, SIREN_WORKER_CPUS, SIREN_WORKER_GPUS, and Ray's own RAY_ADDRESS.
"""

import json
import logging
import multiprocessing
import os
import pickle
import shutil
import threading
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from siren import progress, shards
from siren.config import require
from siren.progress import notice, track

Work = Callable[[Any], Any]
Make = Callable[[], Work]  # can be pickled, and is small: a function or class of a module, or a partial of one

STORE_BYTES = 256 * 2**20  # of a cluster that is started here: results are small, the rest goes through files
MAX_FAILURES = 10  # of the nodes of one training; each resumes from its checkpoint
REMEDY = "(SIREN_WORKERS=1 needs least); finished shards are kept, so run the stage again"
CARRIED = ("PYTHONPATH", "OMP_NUM_THREADS", "DVC_STAGE", "DVC_EXP_NAME")  # to workers, with all of ours
CARRIED_PREFIXES = ("SIREN_", "HF_")
MISSING = "SIREN_ENGINE is ray, and ray is not installed; `pip install 'siren[ray]'`, or unset SIREN_ENGINE"


class Engine(Protocol):
    """Runs work somewhere."""

    name: str

    def map(self, make: Make, items: Sequence[Any], network: bool = False, most: int | None = None) -> Iterator[Any]:
        """`make()(item)` of each item, in order. `network`: the work holds a network, and takes its device for itself.

        `most`: so many workers at once, or fewer. An exception of `work` comes out here as it is; a worker that ends
        without one is a ChildProcessError, where it is not replaced.
        """

    def room(self) -> int:
        """How many workers there may be at once."""

    def shared(self, make: Callable[[], Any]) -> Any:
        """What `make` gives, once for all workers: its methods run in one place, and can be called from anywhere."""

    def train(self, name: str, function: Callable[[], None], processes: int) -> None:
        """Run a training that keeps its own checkpoints, in so many processes that find each other as by torchrun."""


@dataclass(frozen=True)
class Settings:
    """Where work runs, as the environment says. Raises ConfigError for a value that cannot be right."""

    engine: str = "local"
    workers: int | None = None  # at most so many at once; None for as many as there is room for
    cpus: int = 1  # of each worker on a cluster; also its number of threads
    gpus: float | None = None  # of each worker that holds a network; None for 1 where the cluster has any
    address: str | None = None  # None starts a cluster of this machine alone

    def __post_init__(self) -> None:
        require(self.engine in ENGINES, f"SIREN_ENGINE is {self.engine!r}; it must be one of {', '.join(ENGINES)}")
        for name, value in (("SIREN_WORKERS", self.workers), ("SIREN_WORKER_CPUS", self.cpus)):
            require(value is None or value >= 1, f"{name} is {value}; at least 1 is needed")
        require(self.gpus is None or self.gpus >= 0, f"SIREN_WORKER_GPUS is {self.gpus}; 0 or more")

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Settings":
        def number(name: str, kind: type, default: Any) -> Any:
            text = environment.get(name) or ""
            try:
                return kind(text) if text else default
            except ValueError:
                require(False, f"{name} is {text!r}; it must be a number")

        return cls(
            environment.get("SIREN_ENGINE") or "local",
            number("SIREN_WORKERS", int, None),
            number("SIREN_WORKER_CPUS", int, 1),
            number("SIREN_WORKER_GPUS", float, None),
            environment.get("RAY_ADDRESS") or None,
        )


def chosen() -> Engine:
    """The engine that the environment asks for."""
    settings = Settings.read(os.environ)
    return ENGINES[settings.engine](settings)


def each(
    engine: Engine,
    make: Make,
    items: Iterable[Any],
    label: str,
    unit: str = "item",
    network: bool = False,
    most: int | None = None,
) -> Iterator[Any]:
    """`engine.map` with progress: an item that has a length counts for so many."""
    items = list(items)
    sizes = [_size(item) for item in items]
    return track(engine.map(make, items, network, most), label, sum(sizes), unit=unit, sizes=sizes)


def _size(item: Any) -> int:
    return len(item) if hasattr(item, "__len__") else 1


def threaded(work: Work, items: Iterable[Any], threads: int, ahead: int) -> Iterator[Any]:
    """`work` of each item, in order, in threads of this process; about `ahead` items are begun before their turn."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def pieces(
    engine: Engine,
    make: Callable[[], Callable[[Any], pa.Table]],
    items: Iterable[Any],
    folder: Path,
    label: str,
    unit: str = "item",
    network: bool = False,
) -> list[Path]:
    """A table of each item as a file in `folder`, in order. Those that an earlier run left there are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    items = list(items)
    paths = [folder / f"{index:06d}.arrow" for index in range(len(items))]
    missing = [(path, item) for path, item in zip(paths, items, strict=True) if not path.is_file()]
    if len(missing) < len(items):
        notice(f"{label}: {len(items) - len(missing)} of {len(items)} shards were finished by an earlier run")
    for _ in each(engine, partial(_Kept, make), [_Task(path, item) for path, item in missing], label, unit, network):
        pass
    return paths


def gather(
    engine: Engine,
    paths: Sequence[Path],
    folder: Path,
    stem: str,
    rows_per_shard: int,
    suffix: str = ".parquet",
) -> list[Path]:
    """The rows of `pieces` as shards of one size; the bytes do not depend on how `pieces` were cut."""
    ends = np.cumsum([shards.num_rows(path) for path in paths])
    starts = ends - np.diff(ends, prepend=0)  # of each piece among all rows
    made = []
    for index, rows in enumerate(ranges(int(ends[-1]), rows_per_shard) or [range(0)]):
        some = range(np.searchsorted(ends, rows.start, "right"), np.searchsorted(starts, rows.stop, "left"))
        spans = [
            (paths[k], max(rows.start - int(starts[k]), 0), min(rows.stop, int(ends[k])) - int(starts[k])) for k in some
        ]
        parts = [(path, a, b) for path, a, b in spans if a < b] or [(paths[0], 0, 0)]
        made.append(_Shard(folder / f"{stem}-{index:05d}{suffix}", parts, len(rows)))
    for _ in each(engine, _gatherer, made, f"write {stem}", "row"):
        pass
    for stale in set(shards.shard_paths(folder, stem)) - {shard.path for shard in made}:
        stale.unlink()
    return [shard.path for shard in made]


@dataclass(frozen=True)
class _Shard:
    path: Path
    parts: list[tuple[Path, int, int]]  # of pieces: rows from, to
    rows: int

    def __len__(self) -> int:
        return self.rows


def _gatherer() -> Work:
    return _gather


def _gather(shard: _Shard) -> None:
    parts = [shards.read_table(path).slice(start, stop - start) for path, start, stop in shard.parts]
    shards.write_table(shard.path, shards.joined(parts))


def ranges(total: int, size: int) -> list[range]:
    """The rows of `total`, `size` at a time."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


@dataclass(frozen=True)
class _Task:
    path: Path
    item: Any

    def __len__(self) -> int:
        return _size(self.item)


class Tables:
    """Work on rows of shards, of a function: a table of these columns → a table and notes (JSON), which it carries."""

    def __init__(self, make: Callable[[], Callable[[pa.Table], tuple[Any, ...]]], columns: list[str]) -> None:
        self.function, self.columns = make(), columns

    def __call__(self, rows: shards.Rows) -> pa.Table:
        table, *notes = self.function(rows.read(self.columns))
        return noted(table, notes)


def noted(table: pa.Table, notes: Any) -> pa.Table:
    """The table, which carries plain data about itself: see `notes`."""
    return table.replace_schema_metadata({"notes": json.dumps(notes)})


def notes(path: Path) -> Any:
    """What the work that made a piece says of it."""
    return json.loads(shards.table_metadata(path)["notes"])


class _Kept:
    """Work whose table is kept as a file: what is there already, because only its report was lost, is not repeated."""

    def __init__(self, make: Callable[[], Callable[[Any], pa.Table]]) -> None:
        self.work = make()

    def __call__(self, task: _Task) -> None:
        if not task.path.is_file():
            table = self.work(task.item)
            shards.write_table(task.path, table)


# On this machine.


class Local:
    """A process for each core for pure work; work with a network in this process, as the network uses all cores."""

    name = "local"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool: ProcessPoolExecutor | None = None  # kept, because processes take a second to start

    def map(self, make: Make, items: Sequence[Any], network: bool = False, most: int | None = None) -> Iterator[Any]:
        workers = min(self.room(), most or len(items), len(items))
        if network or workers < 2:
            if items:
                yield from map(make(), items)
            return
        if self.pool is None:
            # Spawned: a fork of a process that has threads (torch, pyarrow) may hang.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.room(), context, initializer=_end_with_parent)
        waiting: deque[Future[Any]] = deque()
        token = uuid.uuid4().hex
        try:
            for item in items:
                waiting.append(self.pool.submit(_do, token, make, item))
                if len(waiting) >= (most or 2 * workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            self.pool = None
            why = "a worker process ended at once: it was killed, or memory ran out"
            raise ChildProcessError(f"{why} {REMEDY}") from None
        finally:
            for future in waiting:
                future.cancel()

    def room(self) -> int:
        return self.settings.workers or cores()

    def shared(self, make: Callable[[], Any]) -> Any:
        return make()  # for threads of this process: what waits for a network needs no other

    def train(self, name: str, function: Callable[[], None], processes: int) -> None:
        function()


def cores() -> int:
    """Those that this process may use; macOS knows only of all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_held: dict[str, Work] = {}  # work that this process has built, by the map that it belongs to


def _do(token: str, make: Make, item: Any) -> Any:
    try:
        if token not in _held:
            progress.silence()
            _held.clear()
            _held[token] = make()
        return _held[token](item)
    except Exception as error:
        raise _carried(error) from None  # one that cannot be sent would count as the death of this process


def _end_with_parent() -> None:
    """End this process when the one that started it is killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="siren-parent", daemon=True).start()


# On a cluster.


class Ray:
    """Ray Data: tasks for pure work, a pool of actors for work with a network. Ray Train for trainings.

    Nodes share a file system that has the project at the same path, and have the same packages.
    """

    name = "ray"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def map(self, make: Make, items: Sequence[Any], network: bool = False, most: int | None = None) -> Iterator[Any]:
        if not items:
            return
        ray = self._connect()
        from ray import data as ray_data

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that bars are off
        context = ray_data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False  # ours are shown
        context.execution_options.preserve_order = True
        rows = [{"item": pickle.dumps(item)} for item in items]
        data = ray_data.from_items(rows, override_num_blocks=len(rows))  # a block is a task, and what a failure repeats
        resources: dict[str, Any] = {"num_cpus": self.settings.cpus, "runtime_env": _environment()}
        token = uuid.uuid4().hex
        if network:
            gpus = self._gpus(ray)
            most = min(self.room(), most or len(items), len(items))
            if gpus and self.settings.workers is None:
                most = max(1, min(most, int(ray.cluster_resources().get("GPU", 0) / gpus)))
            data = data.map_batches(
                _Actor,
                batch_size=None,
                batch_format="pyarrow",
                compute=ray_data.ActorPoolStrategy(min_size=1, max_size=most),
                fn_constructor_args=(str(Path.cwd()), make),
                num_gpus=gpus,
                **resources,
            )
        else:
            data = data.map_batches(
                _task,
                batch_size=None,
                batch_format="pyarrow",
                compute=ray_data.TaskPoolStrategy(size=most or self.settings.workers),
                fn_args=(token, str(Path.cwd()), make),
                **resources,
            )
        try:
            for row in data.iter_rows():
                result, error = pickle.loads(row["result"])
                if error is not None:
                    raise error
                yield result
        except ray.exceptions.RayError as error:  # of the cluster, not of the work
            raise ChildProcessError(f"Ray gave up: {str(error).splitlines()[0]} {REMEDY}") from error

    def room(self) -> int:
        cpus = self._connect().cluster_resources().get("CPU", 1)
        return self.settings.workers or max(1, int(cpus / self.settings.cpus))

    def shared(self, make: Callable[[], Any]) -> Any:
        ray = self._connect()
        # Restarted with the node that it was on; what it knew is lost then, which is pauses and a pace here.
        lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "runtime_env": _environment()}
        return _Shared(ray.remote(_Host).options(**lasting).remote(make))

    def train(self, name: str, function: Callable[[], None], processes: int) -> None:
        """Ray Train. A node that dies is replaced; the training goes on from its checkpoint, as `function` finds it."""
        ray = self._connect()
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        gpus, root = self._gpus(ray), Path.cwd()
        storage = root / ".siren" / "ray"
        trainer = TorchTrainer(
            partial(_train, str(root), function, _environment()["env_vars"]),
            scaling_config=ScalingConfig(
                num_workers=processes,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": self.settings.cpus} | ({"GPU": gpus} if gpus else {}),
            ),
            run_config=RunConfig(
                name=f"{name}-{uuid.uuid4().hex[:6]}",
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        try:
            error = trainer.fit().return_value
        finally:
            shutil.rmtree(storage, ignore_errors=True)  # Ray's own records; the checkpoints are ours
        if error is not None:
            raise error

    def _connect(self) -> Any:
        try:
            import ray
        except ImportError:
            raise ValueError(MISSING) from None
        if not ray.is_initialized():
            own = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
            where: dict[str, Any] = {"address": self.settings.address} if self.settings.address else own
            ray.init(logging_level=logging.WARNING, log_to_driver=True, **where)
            room, nodes = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
            notice(f"ray: {nodes} nodes, {room.get('CPU', 0):g} CPUs, {room.get('GPU', 0):g} GPUs")
        return ray

    def _gpus(self, ray: Any) -> float:
        if self.settings.gpus is not None:
            return self.settings.gpus
        return 1.0 if ray.cluster_resources().get("GPU") else 0.0


def _environment() -> dict[str, Any]:
    names = [n for n in os.environ if n in CARRIED or n.startswith(CARRIED_PREFIXES)]
    return {"env_vars": {name: os.environ[name] for name in names}}


class _Host:
    """Holds what workers share, in an actor."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.held = make()

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self.held, name)(*arguments)


class _Shared:
    """The methods of what an actor holds."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):  # also while one is read that has no actor yet
            raise AttributeError(name)
        import ray

        return lambda *arguments: ray.get(self._actor.call.remote(name, arguments))


class _Actor:
    """Work that is built once, in an actor."""

    def __init__(self, root: str, make: Make) -> None:
        self.work = _built(root, make)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _results(self.work, batch)


def _task(batch: pa.Table, token: str, root: str, make: Make) -> pa.Table:
    if token not in _held:
        _held.clear()
        _held[token] = _built(root, make)
    return _results(_held[token], batch)


def _built(root: str, make: Make) -> Work:
    """The work, in the project's folder. An exception of its making comes out where it is used, as one of the work."""
    _enter(root)
    progress.silence()
    try:
        return make()
    except Exception as error:
        failure = _carried(error)

        def refuse(item: Any) -> Any:
            raise failure

        return refuse


def _results(work: Work, batch: pa.Table) -> pa.Table:
    found = []
    for item in batch["item"].to_pylist():
        try:
            found.append(pickle.dumps((work(pickle.loads(item)), None)))
        except Exception as error:
            # As a result, and not as a failure of the worker: Ray repeats those, and wraps them.
            found.append(pickle.dumps((None, _carried(error))))
    return pa.table({"result": pa.array(found, pa.large_binary())})


def _train(root: str, function: Callable[[], None], environment: dict[str, str]) -> Exception | None:
    """What each process of a training runs."""
    import torch.distributed as dist

    os.environ.update(environment)
    _enter(root)
    try:
        function()
    except Exception as error:
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise  # the others wait for this one: Ray has to end them
        return _carried(error)
    return None


def _carried(error: Exception) -> Exception:
    """An exception that can be sent, with where it happened as a note."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not getattr(error, "__notes__", None):
        error.add_note("In a worker:\n" + "".join(traceback.format_exception(error)))
    return error


def _enter(root: str) -> None:
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"node {os.uname().nodename} has no folder {root}; the project must lie at one path on a file system that "
            "all nodes of the cluster share"
        )
    os.chdir(root)


ENGINES: dict[str, Callable[[Settings], Engine]] = {"local": Local, "ray": Ray}
LOCAL = Local(Settings(workers=1))  # this process alone
