"""StackedVAE (1.2), stage 3: both parts, pixels, clips of 1 to 33 frames.

    torchrun --nproc_per_node 8 scripts/train_vae.py configs/vae/train/stage3.py \\
        --data-path videos.csv --ckpt-path STAGE2

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.runtime import *
    from ..._base_.stacked_vae import *
    from ..._base_.video import *

dataset.update(num_frames=33, image_size=(256, 256), transform="center")

epochs = 100
ema_decay = None
outputs = "outputs/vae_stage3"
log_every = 1
ckpt_every = 1000
batch_size = 1
num_workers = 16
loss.update(perceptual_weight=0.1)
mixed_frames.update(strategy="random")
optimizer.update(lr=1e-05, eps=1e-08)
lr_schedule.update(initial_lr=0.0)
