"""Engines: the same results in the same order wherever work runs, and a killed worker costs the shard it was at."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from siren import engine
from siren.config import ConfigError
from siren.stages import places
from tests.processes import eventually

ROOT = Path(__file__).resolve().parents[1]


def square(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number * number


def squares() -> Callable[[int], int]:
    return square


def broken() -> Callable[[int], int]:
    raise ConfigError("no such network")


class Squares:
    """A shard of squares; every process that begins one says so in a file, with its id."""

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self.log, self.seconds = log, seconds

    def __call__(self, rows: range) -> pa.Table:
        with self.log.open("a") as file:
            file.write(f"{rows.start} {os.getpid()}\n")
        time.sleep(self.seconds)
        return pa.table({"square": [square(row) for row in rows]})


def begun(log: Path) -> list[tuple[int, int]]:
    """(first row, process) of every shard that was begun."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


@pytest.mark.parametrize("workers", [1, 2])
def test_local_results_are_in_order_whatever_the_number_of_processes(workers: int) -> None:
    local = engine.Local(engine.Settings(workers=workers))
    assert list(local.map(squares, range(9))) == [n * n for n in range(9)]


def test_an_error_in_a_process_comes_out_as_it_is() -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        list(engine.Local(engine.Settings(workers=2)).map(squares, [3, -1, 2]))
    with pytest.raises(ConfigError, match="no such network"):
        list(engine.Local(engine.Settings(workers=2)).map(broken, [1, 2]))


class Odd(ValueError):
    """One that can be pickled and not be read again, as many are."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)


def odd() -> Callable[[int], int]:
    def refuse(item: int) -> int:
        raise Odd("odd", f"{item} is odd")

    return refuse


def test_an_error_that_cannot_be_sent_is_not_taken_for_a_dead_process() -> None:
    with pytest.raises(RuntimeError, match="Odd: 1 is odd"):
        list(engine.Local(engine.Settings(workers=2)).map(odd, [1, 3]))


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    code = "from functools import partial\nfrom pathlib import Path\nfrom siren import engine\n"
    code += "from tests import test_engine\n"
    code += f"log, folder = Path({str(tmp_path)!r}) / 'log', Path({str(tmp_path)!r}) / 'out'\n"
    code += "if __name__ == '__main__':\n    make = partial(test_engine.Squares, log, 0.2)\n"
    code += (
        "    engine.pieces(engine.Local(engine.Settings(workers=2)), make, engine.ranges(99, 1), folder, 'squares')\n"
    )
    (tmp_path / "main.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, tmp_path / "main.py"], env=environment, stderr=subprocess.DEVNULL)
    eventually(lambda: len({pid for _, pid in begun(tmp_path / "log")}) == 2)
    process.kill()
    process.wait()
    workers = {pid for _, pid in begun(tmp_path / "log")}
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_finished_shards_are_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, folder, rows = tmp_path / "log", tmp_path / "out", engine.ranges(10, 4)
    paths = engine.pieces(engine.LOCAL, partial(Squares, log), rows, folder, "squares", network=True)
    first = [path.read_bytes() for path in paths]
    assert [start for start, _ in begun(log)] == [0, 4, 8]
    paths[1].unlink()
    assert engine.pieces(engine.LOCAL, partial(Squares, log), rows, folder, "squares", network=True) == paths
    assert [start for start, _ in begun(log)] == [0, 4, 8, 4]
    assert [path.read_bytes() for path in paths] == first
    assert "2 of 3 shards were finished by an earlier run" in capsys.readouterr().err


def test_a_local_worker_that_is_killed_costs_its_shard(tmp_path: Path) -> None:
    log, folder, rows = tmp_path / "log", tmp_path / "out", engine.ranges(6, 1)
    local = engine.Local(engine.Settings(workers=2))
    with pytest.raises(ChildProcessError, match="finished shards are kept"):
        engine.pieces(local, partial(Dies, log, 3), rows, folder, "squares")
    there = {path.name for path in folder.glob("*.arrow")}
    assert "000000.arrow" in there
    assert "000003.arrow" not in there
    before = len(begun(log))
    engine.pieces(local, partial(Squares, log), rows, folder, "squares")
    assert sorted(start for start, _ in begun(log)[before:]) == [n for n in range(6) if f"{n:06d}.arrow" not in there]


class Dies(Squares):
    """Squares of a process that is killed at one of its shards."""

    def __init__(self, log: Path, at: int) -> None:
        super().__init__(log, 0.05)
        self.at = at

    def __call__(self, rows: range) -> pa.Table:
        if rows.start == self.at:
            while not (self.log.parent / "out" / "000000.arrow").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(rows)


def test_pieces_belong_to_all_that_a_network_was_saved_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models" / "clap"
    folder.mkdir(parents=True)
    folders = set()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer.json"):
        with (folder / name).open("a") as file:
            file.write("x")
        folders.add(places.pieces("score", places.saved("clap")))
    assert len(folders) == 4


def test_pieces_belong_to_the_code_that_the_stage_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "CODE", tmp_path)
    for name in ("filter/score.py", "filter/caption/rules.py", "filter/caption/local.py", "serve/app.py"):
        (tmp_path / "siren" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "siren" / name).write_text("x = 1\n")
    deps = {"score": "score.py", "caption": "caption"}
    stages = {name: {"deps": [f"siren/filter/{part}", "data"]} for name, part in deps.items()}
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))
    before = [places.pieces(name, []) for name in stages]
    (tmp_path / "siren/serve/app.py").write_text("x = 2\n")
    assert [places.pieces(name, []) for name in stages] == before
    (tmp_path / "siren/filter/caption/local.py").write_text("x = 2\n")
    after = [places.pieces(name, []) for name in stages]
    assert (after[0], after[1] == before[1]) == (before[0], False)
    Path("dvc.yaml").unlink()  # an installed package alone: everything counts
    everything = places.pieces("score", [])
    (tmp_path / "siren/serve/app.py").write_text("x = 3\n")
    assert places.pieces("score", []) != everything


def test_cores_are_counted_where_a_system_does_not_say_which_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert engine.cores() == os.cpu_count()


def test_settings_come_from_the_environment() -> None:
    read = engine.Settings.read
    assert read({}) == engine.Settings("local", None, 1, None, None)
    found = read({"SIREN_ENGINE": "ray", "SIREN_WORKERS": "8", "SIREN_WORKER_GPUS": "0.5", "RAY_ADDRESS": "h:6379"})
    assert found == engine.Settings("ray", 8, 1, 0.5, "h:6379")
    for wrong, message in (
        ({"SIREN_ENGINE": "spark"}, "SIREN_ENGINE is 'spark'; it must be one of local, ray"),
        ({"SIREN_WORKERS": "many"}, "SIREN_WORKERS is 'many'; it must be a number"),
        ({"SIREN_WORKERS": "0"}, "SIREN_WORKERS is 0; at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            read(wrong)
