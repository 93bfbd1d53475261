"""Sweep of autoencoders: StackedVAE (1.2), both parts at once.

    python -m eval.sweep outputs/sweep --configs configs/vae/sweep/stacked.py

Stride 4x8x8, about 0.3 million parameters. One core is enough. Described in docs/autoencoders.md.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.reconstruction import *
    from ..._base_.runtime import *
    from ..._base_.stacked_vae import *
    from ..._base_.video import *

dataset.update(num_frames=17, image_size=(64, 64), transform="random_crop")
vae.update(micro_frame_size=None, shift=(0.0,) * 8, scale=(1.0,) * 8)
vae["spatial"].update(
    block_out_channels=(16, 16, 16, 16),
    layers_per_block=1,
    latent_channels=8,
    norm_num_groups=4,  # groups of one channel would take the brightness away
    micro_batch_size=None,
    scaling_factor=1.0,
    initial_logvar=-5.0,  # else noise hides the latents from a small decoder for many steps
)
vae["temporal"].update(
    in_channels=8,
    latent_channels=8,
    embed_channels=8,
    channels=16,
    num_res_blocks=1,
    channel_multipliers=(1, 1, 1, 1),
    num_groups=4,
    initial_logvar=-5.0,
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
