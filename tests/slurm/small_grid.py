"""``reproduce.py`` with small grids: demo without, and mini with choices by the first seed, on digits in seconds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import profiles
import reproduce
import train_cnn_head
import train_vit_lora
from common import cli
from common.grid import slurm_queue
from common.grid.grid import Arm, Grid

DIGITS = {"digits": {"train_limit": 120, "test_limit": 40, "image_size": 32}}
FEW = {"epochs": 2, "batch_size": 16, "weights": "random", "lr": (1e-3,)}
TUNED = FEW | profiles.TUNED | {"epochs": 1, "lr": (1e-3, 3e-3)}
PROBE = Arm(train_cnn_head, "test_resnet.r160_in1k", profiles.CNN_PROBE | {"weights": "random"})
HEAD = Arm(train_cnn_head, "test_resnet.r160_in1k", profiles.HEAD | FEW)
LORA = Arm(train_vit_lora, "test_vit.r160_in1k", profiles.LORA | FEW)
# Some seconds, so that there is time to take its node away.
LONG_LORA = LORA.with_recipe(epochs=40)

slurm_queue.POLL_SECONDS = 1

profiles.PROFILES |= {
    "demo": (Grid((PROBE, HEAD, LORA), DIGITS, seeds=(0, 1)),),
    "mini": (
        Grid((HEAD.with_recipe(**TUNED),), DIGITS, seeds=(0, 1), tuned=True),
        Grid(
            (Arm(LORA.script, LORA.backbone, LORA.recipe | TUNED, ({"rank": 2}, {"rank": 16})),),
            DIGITS,
            seeds=(0, 1),
            tuned=True,
        ),
    ),
    "paper": (Grid((LONG_LORA,), DIGITS, seeds=(0, 1)),),
}

if __name__ == "__main__":
    sys.exit(cli.run(reproduce.main, reproduce.Config))
