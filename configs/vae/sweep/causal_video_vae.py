"""Sweep of autoencoders: CausalVideoVAE, causal as a whole.

    python -m eval.sweep outputs/sweep --configs configs/vae/sweep/causal_video_vae.py

Stride 4x8x8, about 0.3 million parameters. One core is enough. Described in docs/autoencoders.md.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.causal_video_vae import *
    from ..._base_.reconstruction import *
    from ..._base_.runtime import *
    from ..._base_.video import *

dataset.update(num_frames=17, image_size=(64, 64), transform="random_crop")
vae.update(
    channels=16,
    channel_multipliers=(1, 1, 1, 1),
    num_res_blocks=1,
    latent_channels=8,
    norm="pixel",
    attention="none",
    micro_batch_size=None,
    micro_frame_size=None,
    latent_std=None,
    initial_logvar=-5.0,  # else noise hides the latents from a small decoder for many steps
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
optimizer.update(lr=3e-4, eps=1e-08)  # at 1e-3 the brightness of whole clips swings
lr_schedule.update(warmup_steps=10, initial_lr=3e-5)
