"""What each process of `test_distributed` runs under torchrun: a short training, its losses and weights kept by one."""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from siren.train.distributed import join
from siren.train.loop import Checkpoint
from siren.train.stage1 import train_stage1
from tests.train.test_distributed import SETTINGS
from tests.train.test_stage1 import tokens, transformer


def main(folder: Path, accumulate: int) -> None:
    settings, history = SETTINGS[accumulate], []
    with join() as ranks:
        model, place = transformer(), Checkpoint(folder / "checkpoints", "same")
        data = (tokens(), tokens(6), settings, 7, 0)
        train_stage1(model, *data, lambda step, metrics: history.append(metrics), place, ranks=ranks)
        if ranks.rank == 0:
            save_file(model.state_dict(), folder / "weights.safetensors")
            (folder / "history.json").write_text(json.dumps([ranks.world, history]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
