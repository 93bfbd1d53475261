"""The autoencoder of the lab, stage 2: it goes on with other clips at half the rate.

    python scripts/train_vae.py configs/lab/train/vae2.py --vae.from_pretrained outputs/lab/vae

One core: about 0.3 seconds per step.
"""

from mmengine.config import read_base

with read_base():
    from .vae import *

dataset.update(world_seed=1)
optimizer.update(lr=2e-3)
max_steps = 2000
run_name = "vae2"
