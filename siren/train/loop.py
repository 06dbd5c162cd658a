"""What every training loop here shares: the schedule, the optimiser and a checkpoint that resumes exactly.

A checkpoint is one safetensors file and one JSON sidecar, written to temporary names and renamed, the sidecar last:
a half-written one is never read. It holds the weights, the optimiser's moments, the step, the state of the random
generator where there is one, and the identity of the run: all settings and inputs that its result depends on. Learning
rate, order of the data and everything that is drawn by (seed, step) follow from the step, so they resume with it.

Each identity has a folder of its own. A run that finds none of its own but those of another one shows how they differ;
whether it then stops or starts afresh is the caller's to say (`Checkpoint.restart`).
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from siren.atomic import replacing, write_text
from siren.config import Training, flatten
from siren.hashing import digest
from siren.progress import notice

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


def differences(there: Any, here: Any) -> list[str]:
    """What two identities do not share, one line for each key: its value there and its value here."""
    ours, theirs = (flatten(data if isinstance(data, dict) else {"identity": data}) for data in (here, there))
    keys = [key for key in theirs | ours if theirs.get(key, "(none)") != ours.get(key, "(none)")]
    return [f"{key}: {_brief(theirs.get(key, '(none)'))} there, {_brief(ours.get(key, '(none)'))} here" for key in keys]


def _brief(value: Any) -> str:
    """Hashes of many files fill pages."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"


class Checkpoint:
    """Where one run keeps its progress: `root`/<hash of its identity>/step-*.

    identity: settings and inputs as plain data, by names that a person will recognise in a message.
    keep: how many of the last checkpoints stay. restart: whether to start afresh, with a notice, where `root` has only
    the checkpoints of another run; otherwise that is an error.
    """

    def __init__(self, root: Path, identity: Any, keep: int = 1, restart: bool = False):
        self.root, self.keep, self.restart = root, keep, restart
        self.identity = json.loads(json.dumps(identity, default=str))  # as it will be read back
        self.folder = root / digest(self.identity)

    def save(
        self,
        step: int,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        generator: torch.Generator | None = None,
    ) -> None:
        """Write the state after `step` steps; older ones than the last `keep` are removed once this one is whole."""
        tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
        for index, fields in optimiser.state_dict()["state"].items():
            for name, value in fields.items():
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
        if generator is not None:
            tensors["generator"] = generator.get_state()
        stem = f"step-{step:08d}"
        with replacing(self.folder / f"{stem}.safetensors", sync=True) as path:
            save_file(tensors, path)
        sidecar = {"step": step, "identity": self.identity}
        write_text(self.folder / f"{stem}.json", json.dumps(sidecar, indent=1) + "\n", sync=True)
        for old in self._sidecars()[self.keep :]:
            old.unlink()  # first: without it the tensors are not looked at
            old.with_suffix(".safetensors").unlink(missing_ok=True)
        for partial in self.folder.glob(".step-*"):
            partial.unlink()  # left by a run that was killed while it wrote

    def restore(
        self, module: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator | None = None
    ) -> int:
        """Load the newest whole checkpoint of this run → steps done; 0 where there is none.

        Raises ValueError, with the difference, where there are only those of another run and `restart` is off.
        """
        for sidecar in self._sidecars():
            try:
                tensors = load_file(sidecar.with_suffix(".safetensors"))
            except (SafetensorError, OSError) as error:
                notice(f"{sidecar.with_suffix('.safetensors')} cannot be read ({error}); an earlier one is looked for")
                continue
            module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
            _restore_optimiser(optimiser, tensors)
            if generator is not None:
                generator.set_state(tensors["generator"])
            return int(json.loads(sidecar.read_text())["step"])
        self._look_for_another()
        return 0

    def latest(self) -> Path | None:
        """The sidecar of the newest checkpoint of this run."""
        return next(iter(self._sidecars()), None)

    def clear(self) -> None:
        """Remove what a run that has written its result kept; the sidecars first, so that nothing resumes from half."""
        for sidecar in self._sidecars():
            sidecar.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _sidecars(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.json"), reverse=True)

    def _look_for_another(self) -> None:
        others = sorted(self.root.glob("*/step-*.json"), key=lambda path: path.stat().st_mtime)
        if not others:
            return
        other = json.loads(others[-1].read_text())
        lines = "\n  ".join(differences(other["identity"], self.identity))
        place, step = others[-1].parent, other["step"]
        found = f"{place} has an unfinished run of other settings or data, at step {step}:\n  {lines}"
        if not self.restart:
            raise ValueError(
                f"{found}\nTo go on with it, set these back. To start afresh, remove that folder, or let `dvc repro` "
                "run the stage."
            )
        notice(f"{found}\nThis run starts afresh. Set these back to go on with the other, or remove its folder.")


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The moments, each in the memory layout of its parameter: fused steps go by it, and files know only one."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state = optimiser.state_dict()
    state["state"] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".")
            like = parameters[int(index)]
            if value.shape == like.shape and value.stride() != like.stride():
                value = torch.empty_like(like, dtype=value.dtype, device="cpu").copy_(value)
            state["state"].setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(state)


class Watch:
    """Stops a training at the first loss or gradient norm that is not finite. Called in every step, before the weights
    move: so every checkpoint is good.

    On an accelerator reading a number waits for the device, so there steps are checked together, where `now` says.
    """

    def __init__(self, label: str, device: str | torch.device, checkpoint: Checkpoint | None):
        self.label, self.checkpoint = label, checkpoint
        self.at_once = torch.device(device).type == "cpu"
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    def __call__(self, step: int, loss: Tensor, norm: Tensor, now: bool) -> None:
        """`now`: whether this step is logged or saved, or the last. Raises FloatingPointError."""
        self.seen.append((step, loss.detach(), norm.detach()))
        if not (now or self.at_once):
            return
        for number, loss, norm in self.seen:
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                last = self.checkpoint.latest() if self.checkpoint else None
                good = (
                    f"the last good checkpoint is {last.with_suffix('.safetensors')}" if last else "no checkpoint yet"
                )
                raise FloatingPointError(
                    f"{self.label}: the loss is {loss.item():.4g} at step {number}, the gradient norm "
                    f"{norm.item():.4g}; {good}; lower the learning rate, or look at the data of that step"
                )
        self.seen.clear()


class Curve:
    """A `log` that passes every report on and keeps it, to be written as one CSV when the run has ended.

    Reports are also appended to a file in `folder`, that of the checkpoints, so that a resumed run has the whole curve.
    Columns that a report does not have stay empty; times (`seconds…`) are passed on and not kept, because the same seed
    must give the same bytes.
    """

    def __init__(self, log: Log, folder: Path):
        self.log, self.lines = log, folder / "curve.jsonl"
        self.points: dict[int, dict[str, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self.lines.exists():
            whole = self.lines.read_text().rpartition("\n")[0]  # a run killed while it wrote leaves half a line
            self.lines.write_text(whole and f"{whole}\n")
            self.points = dict(map(json.loads, whole.splitlines()))

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        self.points[step] = {name: value for name, value in metrics.items() if not name.startswith("seconds")}
        with self.lines.open("a") as file:
            file.write(json.dumps([step, self.points[step]]) + "\n")
        self.log(step, metrics)

    def write(self, path: Path) -> None:
        """The curve as CSV, in one step: step, then every metric in the order it first appeared."""
        points = sorted(self.points.items())
        columns = list(dict.fromkeys(name for _, metrics in points for name in metrics))
        rows = [
            ",".join([str(step)] + [f"{metrics[c]:.6g}" if c in metrics else "" for c in columns])
            for step, metrics in points
        ]
        write_text(path, "\n".join([",".join(["step", *columns]), *rows]) + "\n")
