"""The guides say what works: every block of docs/guides is run, in a copy, in the order in which it stands.

A block's first word is its kind: `sh` is run; `python PATH` or `csv PATH` is the file of that path; of `diff PATH`, the
lines with `-` and without a sign must stand in that file, once, and become those with `+` and without. A block whose
first line says that it needs something a test has not is read only: its commands and options must exist. Of serving the
commands are read here; its calls are made by tests/serve/test_app.py, and of MLflow's server by tests/tracking.
"""

import csv
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer

from siren import cli
from tests import processes

ROOT = Path(__file__).parents[2]
GUIDES = [*(path.name for path in sorted((ROOT / "docs" / "guides").glob("*.md"))), "../serving.md"]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"# needs (a GPU|the network)\b")


@dataclass(frozen=True)
class Block:
    kind: str
    path: str
    text: str

    @property
    def skipped(self) -> bool:
        return bool(NEEDS.match(self.text))


def blocks(guide: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall((ROOT / "docs" / "guides" / guide).read_text())]


def edited(text: str, change: str) -> str:
    lines = change.splitlines(keepends=True)
    old, new = ("".join(line[1:] or "\n" for line in lines if line[:1] != sign) for sign in "+-")
    assert text.count(old) == 1, f"the file has {text.count(old)} times\n{old}"
    return text.replace(old, new)


def follow(folder: Path, guide: str, rows: str = "") -> list[str]:
    """Do what the guide says; what its commands printed. `rows` are further ones of its tables."""
    printed = []
    for block in blocks(guide):
        if block.skipped:
            continue
        if block.kind == "sh":
            right = (0, 1) if "siren doctor" in block.text else (0,)  # which ends in 1 where something is missing
            printed.append(processes.run(folder, "bash", "-e", "-c", block.text, right=right))
        elif block.kind == "diff":
            path = folder / block.path
            path.write_text(edited(path.read_text(), block.text))
        else:
            assert block.kind in ("python", "csv"), f"{guide}: nobody runs a block of {block.kind!r}"
            path = folder / block.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text + (rows if block.kind == "csv" else ""))
    return printed


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_and_option_exists(guide):
    known, stages = typer.main.get_command(cli.app), cli.stage_functions()  # stages have no options
    text = (ROOT / "docs" / "guides" / guide).read_text()
    spoken = [" ".join(found.split()) for found in re.findall(r"`(siren\s[^`<]+)`", text)]
    shown = [line for block in blocks(guide) if block.kind == "sh" for line in block.text.splitlines()]
    for line in [*spoken, *(line for line in shown if line.startswith("siren "))]:
        words, command = shlex.split(line)[1:], known
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command is not known or words[0] in stages, line
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize("guide", GUIDES)
def test_every_link_leads_to_a_file(guide):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / "guides" / guide).read_text())
    assert [link for link in set(links) if not (ROOT / "docs" / "guides" / guide).parent.joinpath(link).is_file()] == []


@pytest.mark.parametrize("guide", ["add-a-metric.md", "add-a-network.md"])
def test_what_is_added_works(guide, tmp_path):
    printed = follow(processes.copy(tmp_path), guide)
    assert re.search(r"\b1 passed", printed[-1])


def test_a_source_that_is_added_works(tmp_path):
    sounds(tmp_path / "archive", ["dog.wav", "rain.wav", "sea.wav"])
    for name in ("dog", "rain"):
        (tmp_path / "archive" / f"{name}.txt").write_text(f"the sound of {name}\n")
    tested, fetched = follow(processes.copy(tmp_path), "add-a-source.md")
    assert re.search(r"\b1 passed", tested)
    assert re.search(r"3 in, 2 out, 1 quarantined", fetched), fetched


def sounds(folder: Path, names: list[str]) -> None:
    """A second or two of noise for each name, with a pitch of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        time = np.arange(rng.integers(16000, 32000)) / 16000
        wav = 0.4 * np.sin(2 * np.pi * rng.uniform(100, 4000) * time) * np.exp(-2 * time)
        soundfile.write(folder / name, wav + 0.02 * rng.normal(size=len(time)), 16000)


def small(folder: Path, scale: str) -> None:
    """The same scale with the lengths of `tiny`: of what a guide trains, nothing but the numbers is other."""
    from omegaconf import OmegaConf

    tiny, path = OmegaConf.load(folder / "conf/scale/tiny.yaml"), folder / "conf/scale" / f"{scale}.yaml"
    for key in ["scale", "defaults", *(["collect"] if scale == "folder" else [])]:  # the sounds stay a folder's
        del tiny[key]
    merged = OmegaConf.merge(OmegaConf.load(path), tiny)
    path.write_text("# @package _global_\n" + OmegaConf.to_yaml(merged))


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return processes.clone(tmp_path_factory.mktemp("guides") / "siren")


@pytest.mark.slow
def test_own_sounds_become_a_champion(clone):
    small(clone, "folder")
    (table,) = (block for block in blocks("your-own-sounds.md") if block.kind == "csv")
    shown = list(csv.DictReader(table.text.splitlines()))
    more = [row | {"file": f"{row['label']}-{i:02d}.wav"} for i in range(3, 53) for row in (shown[0], shown[2])]
    sounds(clone / "sounds", [row["file"] for row in [*shown, *more]])
    whole = "".join(f"{row['file']},{row['caption']} {i},{row['label']}\n" for i, row in enumerate(more))
    printed = follow(clone, "your-own-sounds.md", whole)
    assert "is the champion now" in printed[-1]
    assert len(list((clone / "made").glob("*.wav"))) == 5


@pytest.mark.slow
def test_the_paper_s_page_is_made(clone):
    shutil.rmtree(clone / "data", ignore_errors=True)
    small(clone, "demo")
    follow(clone, "reproduce-the-paper.md")
    page = (clone / "reports" / "paper.html").read_text()
    assert "not run" in page


@pytest.mark.slow
def test_sounds_without_text_are_captioned(clone):
    import pyarrow.parquet as pq
    from omegaconf import OmegaConf

    small(clone, "folder")
    path = clone / "conf/captioner/autocap-demo.yaml"
    settings = OmegaConf.load(path)
    for stage in ("language", "listening", "finetuning"):
        settings.networks.autocap[stage].update({"steps": 20, "warmup_steps": 2, "batch_size": 16})
    path.write_text("# @package _global_\n" + OmegaConf.to_yaml(settings))
    files = [f"{label}-{i:02d}.wav" for i in range(20) for label in ("dog", "rain")]
    found = [f"zoom004{i}.wav" for i in (1, 2, 3)]
    sounds(clone / "sounds" / "described", [*files, *found])
    (clone / "sounds" / "found").mkdir()
    for name in found:
        (clone / "sounds" / "described" / name).rename(clone / "sounds" / "found" / name)
    table = "".join(f"{file},{file.split('-')[0]} heard,{file.split('-')[0]}\n" for file in files)
    (clone / "sounds" / "described" / "manifest.csv").write_text("file,caption,label\n" + table)
    follow(clone, "captioning.md")
    rows = pq.read_table(clone / "data/captions/captions.parquet", columns=["id", "captioner"]).to_pylist()
    left = pq.read_table(clone / "data/captions/quarantine.parquet", columns=["item"])["item"].to_pylist()
    theirs = {row["id"] for row in rows if row["captioner"] == "autocap"} | set(left)
    assert {name.rsplit("-", 1)[0] for name in theirs} == {"found-000002", "found-000003", "found-000004"}
