"""VQVAE in its causal form: 17 frames, 128 x 128; 4x in time, 8x in space.

    torchrun --nproc_per_node 8 scripts/train_vae.py configs/vae/train/causal_vqvae.py --data-path videos.csv

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.runtime import *
    from ..._base_.video import *
    from ..._base_.vqvae import *

vae.update(causal=True, norm="pixel", downsample=(4, 8, 8))
dataset.update(num_frames=17, image_size=(128, 128))
loss.update(
    perceptual_weight=0.0, l1_weight=0.0, mse_weight=4.17, kl_weight=1.0
)  # 1 / 0.06 for values in +-0.5

epochs = 100
batch_size = 8
num_workers = 16
optimizer.update(lr=7e-4, eps=1e-08)
lr_schedule.update(cosine=True)
outputs = "outputs/causal_vqvae"
mixed_frames.update(strategy="image", image_ratio=0.2)
