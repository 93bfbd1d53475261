"""StackedVAE (1.2), stage 1: the temporal part alone, to give the latents of the frozen image part back.

    torchrun --nproc_per_node 8 scripts/train_vae.py configs/vae/train/stage1.py --data-path videos.csv

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.runtime import *
    from ..._base_.stacked_vae import *
    from ..._base_.video import *

dataset.update(num_frames=17, image_size=(256, 256), transform="center")

epochs = 100
ema_decay = None
outputs = "outputs/vae_stage1"
log_every = 1
ckpt_every = 1000
batch_size = 1
num_workers = 16
frozen = ("spatial_vae.",)
loss.update(perceptual_weight=0.1, real_reconstruction=False, latent_reconstruction=True, image_identity=True)
mixed_frames.update(strategy="image", image_ratio=0.2)
optimizer.update(lr=1e-05, eps=1e-08)
lr_schedule.update(initial_lr=0.0)
