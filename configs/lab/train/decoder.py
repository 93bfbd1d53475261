"""The autoencoder of the lab, stage 2: the decoder alone learns on, so latents stay as they are.

    python scripts/train_vae.py configs/lab/train/decoder.py --vae.from_pretrained outputs/lab/vae

One core: about 0.3 seconds per step.
"""

from mmengine.config import read_base

with read_base():
    from .vae import *

frozen = ("encoder.",)
dataset.update(world_seed=1)
optimizer.update(lr=2e-3)
max_steps = 1400
run_name = "decoder"
