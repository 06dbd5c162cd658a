"""What each process of `test_processes` runs under torchrun: a short alignment, its figures and weights kept by one."""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from siren.align.anticausal import align
from siren.train.distributed import join
from tests.align.test_anticausal import decode, likes_high_codes
from tests.align.test_processes import SETTINGS
from tests.model import builders
from tests.train.test_stage1 import tokens


def main(folder: Path, method: str) -> None:
    history = []
    with join() as ranks:
        model = builders.model(3)
        data = (tokens(), decode, likes_high_codes, SETTINGS[method], 6, 0)
        align(model, *data, lambda step, metrics: history.append(metrics), ranks=ranks)
        if ranks.rank == 0:
            save_file(model.state_dict(), folder / "weights.safetensors")
            (folder / "history.json").write_text(json.dumps([ranks.world, history]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
