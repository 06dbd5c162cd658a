"""On Ray: the bytes of one process; a worker or a node killed in the middle costs one shard, or no step of a training.

The cluster is of several raylets on this machine. Slow, because Ray is: each of its processes takes seconds to start.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siren import audio, engine
from siren import config as settings
from siren.collect import segment
from siren.collect.fetch import media
from siren.collect.fetch.download import Downloader, Limits
from siren.collect.sources import collect
from siren.collect.sources import folder as folders
from siren.encode import tokenize as tokens
from siren.stages import pipeline
from tests import corpus
from tests.collect.server import serving, status
from tests.collect.test_remote import wav
from tests.test_engine import Squares, begun, broken, squares

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'siren[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of ray and of what it leaves open
]
ROOT = Path(__file__).resolve().parents[1]


def node(cpus: int) -> dict[str, Any]:
    """A small node with few processes; it does not wait (15 seconds at most) for the agents to choose their ports."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("", 0))) for _ in names]
        ports = {name: made.getsockname()[1] for name, made in zip(names, sockets, strict=True)}
    return {"num_cpus": cpus, "object_store_memory": 100 * 2**20, "include_log_monitor": False, **ports}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes: the driver's, of one CPU, and one of two CPUs."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(ROOT))  # workers import the tests' modules
        environment.setenv("OMP_NUM_THREADS", "1")  # as in this process: threads may change rounding
        made = Cluster(initialize_head=True, head_node_args={**node(1), "include_dashboard": False, "no_monitor": True})
        made.add_node(**node(2))
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def on_ray(cluster: Any) -> engine.Engine:
    return engine.Ray(engine.Settings("ray"))


def test_results_are_in_order_and_errors_come_out_as_they_are(on_ray: engine.Engine) -> None:
    assert list(on_ray.map(squares, range(6))) == [n * n for n in range(6)]
    with pytest.raises(ValueError, match="-1 is negative"):
        list(on_ray.map(squares, [3, -1]))
    with pytest.raises(settings.ConfigError, match="no such network"):
        list(on_ray.map(broken, [1], network=True))


@pytest.mark.parametrize("network", [False, True])
def test_a_worker_that_is_killed_costs_one_shard(tmp_path: Path, on_ray: engine.Engine, network: bool) -> None:
    log, rows = tmp_path / "log", engine.ranges(16, 2)
    expected = engine.pieces(engine.LOCAL, partial(Squares, tmp_path / "other"), rows, tmp_path / "here", "here")
    killed: list[tuple[int, int]] = []

    def kill() -> None:
        while len(begun(log)) < 4:
            time.sleep(0.02)
        killed.append(begun(log)[-1])
        os.kill(killed[0][1], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)  # of a test that fails, it ends with the process
    killer.start()
    paths = engine.pieces(on_ray, partial(Squares, log, 0.5), rows, tmp_path / "there", "there", network=network)
    killer.join()
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in expected]
    firsts = [first for first, _ in begun(log)]
    assert sorted(set(firsts)) == [r.start for r in rows]
    repeated = [first for first in set(firsts) if firsts.count(first) > 1]
    assert repeated == [killed[0][0]]
    assert firsts.count(killed[0][0]) == 2


@dataclasses.dataclass(frozen=True)
class Logged:
    """A file on a server, behind a log of who fetches it."""

    url: str
    log: Path

    def get(self, downloader: Downloader) -> tuple[Path, dict[str, Any]]:
        with self.log.open("a") as file:
            file.write(f"{self.url.rsplit('/', 1)[1]} {os.getpid()}\n")
        return downloader.fetch(self.url), {}


LIMITS = settings.Download(4, 3, 0.01, 30.0, 5.0, None)


def collected(
    sources: list[settings.Source], folder: Path, where: engine.Engine
) -> tuple[list[dict[str, Any]], list[dict[str, str]], int]:
    """What `fetch` makes of the sources: rows, quarantine, and requests."""
    limits = where.shared(partial(Limits, None))
    with Downloader(folder / "cache", LIMITS, limits) as downloader:
        table, quarantine, _ = collect(sources, folder, settings.Audio(16000, 1.0), 0, downloader, None, where)
        return table.to_pylist(), quarantine, downloader.requests


def test_fetching_on_ray_is_that_of_one_process_and_keeps_its_limits(
    tmp_path: Path, on_ray: engine.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "SHARD_ITEMS", 4)
    monkeypatch.setattr(folders, "AT_ONCE", 2)
    own = tmp_path / "own"
    lines = ["file,caption"]
    for number in range(5):
        audio.write(own / f"{number}.wav", np.full(1600, 0.1 * number), 16000)
        lines.append(f"{number}.wav,sound {number}")
    (own / "manifest.csv").write_text("\n".join([*lines, "none.wav,nothing"]))
    active, most, mutex = Counter[str](), [0], threading.Lock()

    def slow(handler: Any) -> bool:
        """Served a little later, while others may be."""
        with mutex:
            active["now"] += 1
            most[0] = max(most[0], active["now"])
        time.sleep(0.05)
        with mutex:
            active["now"] -= 1
        return False

    with serving() as server:
        rows = ["location,description,category"]
        for number in range(24):
            rows.append(f"{number}.wav,thing {number},x")
            server.add(f"/media/{number}.wav", wav(number, 0.1), *[slow] * 9)
        del server.files["/media/3.wav"]
        server.faults["/media/9.wav"].insert(0, status(429, Retry_After="1"))
        server.add("/list.csv", "\n".join(rows).encode())
        options = {"catalogue": f"{server.url}/list.csv", "media": server.url + "/media/{location}"}
        sources = [settings.Source("bbc", options), settings.Source("folder", {"path": str(own)})]
        local = collected(sources, tmp_path / "local", engine.LOCAL)
        alone, most[0], seen = most[0], 0, Counter(server.seen)
        server.faults["/media/9.wav"].insert(0, status(429, Retry_After="1"))
        on_cluster = collected(sources, tmp_path / "ray", on_ray)
        assert on_cluster == local
        assert (len(local[0]), len(local[1]), local[2]) == (23 + 5, 2, 1 + 24 + 1)
        assert {path: count - seen[path] for path, count in server.seen.items()} == seen
        assert 1 < most[0] <= LIMITS.concurrency
        assert alone <= LIMITS.concurrency
        before = Counter(server.seen)
        assert collected(sources, tmp_path / "ray", on_ray)[:2] == local[:2]
        assert Counter(server.seen) - before == {"/media/3.wav": 1}  # what could not be had is asked for again
    for name in ("local", "ray"):
        assert not list((tmp_path / name / "audio").glob(".*"))
        assert not list((tmp_path / name / "cache").rglob("*.lock"))


def test_a_killed_fetcher_costs_what_it_was_fetching(
    tmp_path: Path, on_ray: engine.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "SHARD_ITEMS", 4)
    log = tmp_path / "log"
    with serving() as server:
        items = []
        for number in range(16):
            slow = lambda handler: time.sleep(0.3) or False  # noqa: E731
            url = server.add(f"/{number}", wav(number, 0.1), *[slow] * 9)
            items.append(media.Item(f"item-{number}", f"rec-{number}", "train", Logged(url, log)))

        def kill() -> None:
            while not log.exists() or len(log.read_text().splitlines()) < 6:
                time.sleep(0.02)
            os.kill(int(log.read_text().split()[-1]), signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        with Downloader(tmp_path / "cache", LIMITS, on_ray.shared(partial(Limits, None))) as downloader:
            rows, bad = media.obtain(items, "test", tmp_path / "out", downloader, None, on_ray)
        killer.join()
        assert ([row["id"] for row in rows], bad) == ([item.id for item in items], [])
        for number, row in enumerate(rows):
            assert (tmp_path / "out" / row["path"]).read_bytes() == wav(number, 0.1)
        again = [path for path, count in server.seen.items() if count > 1]
        assert len(again) <= LIMITS.concurrency  # what had come was in the cache
        begun = Counter(line.split()[0] for line in log.read_text().splitlines())
        assert 1 <= len([name for name, count in begun.items() if count > 1]) <= media.SHARD_ITEMS


def test_what_is_shared_is_one_thing_for_all_workers(on_ray: engine.Engine) -> None:
    limits = on_ray.shared(partial(Limits, 1000.0))
    waits = list(on_ray.map(partial(Meter, limits), range(6)))
    assert max(waits) > 5.0 - 3.0  # six seconds of bandwidth, less what the test took
    limits.pause("host", 100.0)
    assert set(on_ray.map(partial(Turn, limits), range(2))) == {None}


class Meter:
    """Takes a second of the bandwidth."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def __call__(self, item: int) -> float:
        return self.limits.meter(1000)


class Turn(Meter):
    def __call__(self, item: int) -> float | None:  # type: ignore[override]
        return self.limits.turn("host", 10.0)


def small() -> settings.Config:
    """The small corpus, which is not one piece for any stage, and a training of it."""
    found = corpus.configured(min_score=-1.0, min_crop_score=-1.0)
    tokenize = settings.Tokenize(batch_size=4, shard_rows=8)
    step = dataclasses.replace(found.train.stage1.training, steps=60, batch_size=4, warmup_steps=1, checkpoint_every=10)
    stage1 = dataclasses.replace(found.train.stage1, training=dataclasses.replace(step, log_every=10))
    return dataclasses.replace(
        found,
        scale="test",
        encode=dataclasses.replace(found.encode, tokenize=tokenize),
        train=dataclasses.replace(found.train, stage1=stage1),
    )


def run_data_stages(config: settings.Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Sources to tokens in a folder with the committed networks → sha256 of every file of data/."""
    for name in ("codec", "clap"):
        shutil.copytree(ROOT / "weights" / name, folder / "models" / name)
    monkeypatch.chdir(folder)
    corpus.run(config, "validate")
    files = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_data_and_a_training_are_the_same_on_ray_and_in_process(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "PIECE_CLIPS", 12)
    monkeypatch.setattr(segment, "SHARD_BYTES", 10 * 2 * 25600)  # ten segments in a shard
    monkeypatch.setattr(tokens, "PIECE_ROWS", 8)
    found, config = {}, small()
    for name in ("local", "ray"):
        monkeypatch.setenv("SIREN_ENGINE", name)
        monkeypatch.setenv("SIREN_WORKERS", "1" if name == "local" else "2")
        (tmp_path / name).mkdir()
        found[name] = run_data_stages(config, tmp_path / name, monkeypatch)
    assert found["local"] == found["ray"]
    kinds = {path.split("/")[1] for path in found["ray"]}
    assert kinds == {"clips", "segments", "captions", "scores", "splits", "tokens"}
    assert len([path for path in found["ray"] if path.startswith("data/segments/segments-")]) > 3
    assert len([path for path in found["ray"] if path.startswith("data/tokens/stage1-")]) == 3

    # The training: in process, and on a node that is killed once it has a checkpoint.
    monkeypatch.setenv("SIREN_ENGINE", "local")
    monkeypatch.chdir(tmp_path / "local")
    pipeline.stage1(config, 0)
    monkeypatch.setenv("SIREN_ENGINE", "ray")
    monkeypatch.setenv("SIREN_WORKER_CPUS", "2")  # not on the driver's node
    monkeypatch.chdir(tmp_path / "ray")
    cluster.add_node(**node(2))
    checkpoints, seen = tmp_path / "ray" / ".siren" / "checkpoints", list[int]()
    killer = threading.Thread(target=kill_node_of_training, args=(cluster, checkpoints, seen), daemon=True)
    killer.start()
    pipeline.stage1(config, 0)
    killer.join()
    assert max(seen, default=60) < 60, "the training ended before its node was killed"
    for name in ("models/stage1/0/model.safetensors", "reports/curves/stage1-0.csv"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    runs = sorted((tmp_path / "ray" / ".siren" / "runs").glob("*stage1-0*"))
    record = json.loads((runs[0] / "run.json").read_text())
    assert (len(runs), record["status"], record.get("continues")) == (1, "FINISHED", None)
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "gradient_norm" in line["metrics"] and line["step"] is not None]
    assert (set(steps), steps.count(0)) == ({0, 10, 20, 30, 40, 50, 59}, 1)  # the second process did not start afresh


def kill_node_of_training(cluster: Any, checkpoints: Path, seen: list[int]) -> None:
    """Wait for a checkpoint and kill the node of the training; there is another one with room for it.

    `seen` gets the step of the last checkpoint after the kill: a training that has ended leaves none.
    """
    while not list(checkpoints.rglob("step-*.json")):
        time.sleep(0.02)
    groups = ray.util.placement_group_table().values()
    (place,) = (group["bundles_to_node_id"][0] for group in groups if group["state"] == "CREATED")
    (killed,) = (node for node in cluster.worker_nodes if node.node_id == place)
    cluster.remove_node(killed, allow_graceful=False)
    seen.extend(json.loads(path.read_text())["step"] for path in checkpoints.rglob("step-*.json"))
