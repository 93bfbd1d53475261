"""VQVAE in its causal form: 17 frames, 128 x 128; 4x in time, 8x in space.

    torchrun --nproc_per_node 8 scripts/train_vae.py configs/vae/train/causal_vqvae.py --data-path videos.csv

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from .vqvae import *

vae.update(causal=True, norm="pixel", downsample=(4, 8, 8))
dataset.update(num_frames=17)

outputs = "outputs/causal_vqvae"
mixed_frames.update(strategy="image", image_ratio=0.2)
