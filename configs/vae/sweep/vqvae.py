"""Sweep of autoencoders: VQVAE in its causal form.

    python -m eval.sweep outputs/sweep --configs configs/vae/sweep/vqvae.py

Stride 4x8x8, about 0.3 million parameters. One core is enough. Described in docs/autoencoders.md.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.reconstruction import *
    from ..._base_.runtime import *
    from ..._base_.video import *
    from ..._base_.vqvae import *

dataset.update(num_frames=17, image_size=(64, 64), transform="random_crop")
vae.update(
    channels=32,
    latent_channels=32,
    num_codes=512,
    num_res_layers=1,
    downsample=(4, 8, 8),
    causal=True,
    norm="pixel",
)

dtype = "fp32"
plugin = None
activation_checkpoint = False
epochs = 1000
max_steps = 200
ema_decay = None
batch_size = 1
num_workers = 0
metrics = ("psnr", "ssim", "lpips", "flolpips")
loss.update(perceptual_weight=0.0, mse_weight=1.0)
mixed_frames.update(strategy="random")
optimizer.update(lr=1e-3, eps=1e-08)
lr_schedule.update(warmup_steps=10, initial_lr=1e-4)
