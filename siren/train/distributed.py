"""Data parallelism of one training: a process for each device, started together by torchrun.

`SIREN_PROCESSES=8 siren stage1 0` (or `dvc repro`) starts them on this machine; under a launcher that sets RANK and
WORLD_SIZE (torchrun over several machines) they find each other. Without either there is one process and no group.
How many there are does not change what is computed: `batch_size` is that of all of them together (decision 7).
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process among the `world` that train together."""

    rank: int = 0
    world: int = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all processes in `backward`."""
        return DistributedDataParallel(module) if self.world > 1 else module

    def alone(self, module: nn.Module, skip: bool) -> AbstractContextManager[None]:
        """A context whose `backward` leaves gradients of a wrapped module to this process, if `skip`."""
        return module.no_sync() if skip and isinstance(module, DistributedDataParallel) else nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """The average over all processes."""
        if self.world == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.mean(values) * self.world

    def gather(self, values: Tensor) -> Tensor:
        """[b, …] of every process → [world · b, …], in their order. Gradients flow into this process's part alone."""
        if self.world == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.detach().contiguous())
        parts[self.rank] = values
        return torch.cat(parts)


ALONE = Ranks()


@contextmanager
def join() -> Iterator[Ranks]:
    """The group that the environment describes, for the time of the block; or the one that Ray has made."""
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def processes() -> int:
    """How many are to train together: SIREN_PROCESSES. Raises ValueError for what is no number."""
    wanted = os.environ.get("SIREN_PROCESSES", "1")
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ValueError(f"SIREN_PROCESSES is {wanted!r}; it must be a number of processes, at least 1")
    return int(wanted)


def launch(arguments: list[str]) -> bool:
    """Run `siren <arguments>` in SIREN_PROCESSES processes and wait for them; False where this is to be one of them.

    Raises ValueError for a number that is none, RuntimeError where one of the processes failed.
    """
    wanted = processes()
    if "RANK" in os.environ or wanted == 1:
        return False
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={wanted}"]
    code = subprocess.run([*torchrun, "-m", "siren.cli", *arguments]).returncode
    if code:
        raise RuntimeError(f"`siren {' '.join(arguments)}` in {wanted} processes ended with code {code}; see above")
    return True
