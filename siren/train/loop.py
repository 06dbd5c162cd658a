"""What every training loop here shares: the schedule, the optimiser and a checkpoint that resumes exactly.

A checkpoint is one safetensors file and one JSON sidecar, written to temporary names and renamed, the sidecar last:
a half-written one is never read. It holds the weights, the optimiser's moments, the step, the state of the random
generator and the hash of everything the result depends on; a run whose hash differs refuses it.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from siren.config import Training

Log = Callable[[int, dict[str, float]], None]


def learning_rate(step: int, training: Training) -> float:
    """Linear warm-up, then cosine to `final_lr_ratio`, which is reached on the last step. `step` counts from 0."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    length = max(1, training.steps - training.warmup_steps - 1)
    progress = min(1.0, (step - training.warmup_steps) / length)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return training.learning_rate * (training.final_lr_ratio + (1 - training.final_lr_ratio) * cosine)


def adamw(module: nn.Module, training: Training) -> torch.optim.AdamW:
    """AdamW, betas (0.9, 0.95), with weight decay on matrices only (tensors of two or more axes)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.95), fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = value


def digest(data: Any) -> str:
    """A short hash of plain data, for telling one run's settings and inputs from another's."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Checkpoint:
    """Where one run keeps its progress; `identity` is the hash of its settings and inputs."""

    def __init__(self, folder: Path, identity: str):
        self.folder, self.identity = folder, identity

    def save(
        self,
        step: int,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        generator: torch.Generator | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Write the state after `step` steps; the one before it is removed once this one is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
        for index, fields in optimiser.state_dict()["state"].items():
            for name, value in fields.items():
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).detach().cpu().clone()
        if generator is not None:
            tensors["generator"] = generator.get_state().clone()
        stem = f"step-{step:08d}"
        _atomic(self.folder / f"{stem}.safetensors", lambda path: save_file(tensors, path))
        sidecar = {"step": step, "identity": self.identity, "extra": extra or {}}
        _atomic(self.folder / f"{stem}.json", lambda path: path.write_text(json.dumps(sidecar)))
        for old in self.folder.glob("step-*"):
            if old.stem < stem:
                old.unlink()

    def restore(
        self, module: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Load the newest whole checkpoint of this identity → (steps done, extra); (0, {}) where there is none."""
        sidecars = sorted(self.folder.glob("step-*.json"), reverse=True)
        for sidecar in sidecars:
            data = json.loads(sidecar.read_text())
            if data["identity"] != self.identity:
                continue  # left by a run with other settings or other data: never resumed
            tensors = load_file(sidecar.with_suffix(".safetensors"))
            module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
            state = optimiser.state_dict()
            state["state"] = {}
            for key, value in tensors.items():
                if key.startswith("optimiser."):
                    _, index, name = key.split(".")
                    state["state"].setdefault(int(index), {})[name] = value
            optimiser.load_state_dict(state)
            if generator is not None:
                generator.set_state(tensors["generator"])
            return data["step"], data["extra"]
        return 0, {}

    def clear(self) -> None:
        """Remove the checkpoints of a run that has written its result."""
        for path in self.folder.glob("step-*"):
            path.unlink()


def _atomic(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    temporary.replace(path)


class Curve:
    """A `log` that passes every report on and keeps it, to be written as one CSV when the run has ended.

    Reports are also appended to a file beside the checkpoints, so that a resumed run has the whole curve. Columns that
    a report does not have stay empty; times are not kept, because the same seed must give the same bytes.
    """

    def __init__(self, log: Log, folder: Path, identity: str):
        self.log, self.lines = log, folder / f"{identity}.curve.jsonl"
        self.points: dict[int, dict[str, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self.lines.exists():
            for line in self.lines.read_text().splitlines():
                step, metrics = json.loads(line)
                self.points[step] = metrics

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        self.points[step] = metrics
        with self.lines.open("a") as file:
            file.write(json.dumps([step, metrics]) + "\n")
        self.log(step, metrics)

    def write(self, path: Path) -> None:
        """The curve as CSV: step, then every metric in the order it first appeared."""
        columns = list(dict.fromkeys(name for metrics in self.points.values() for name in metrics))
        rows = [
            ",".join([str(step)] + [f"{metrics[c]:.6g}" if c in metrics else "" for c in columns])
            for step, metrics in sorted(self.points.items())
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([",".join(["step", *columns]), *rows]) + "\n")
        self.lines.unlink()
