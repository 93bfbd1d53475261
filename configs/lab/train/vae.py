"""The autoencoder of the lab on clips of the generated world: 9 frames, 32 x 32.

    python scripts/train_vae.py configs/lab/train/vae.py

One core: about 0.3 seconds per step.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.runtime import *
    from ..._base_.shapes import *
    from ..inference.vae import vae

dataset.update(size=20000, num_frames=9, image_size=(32, 32))
batch_size = 8
vae.update(from_pretrained=None, latent_mean=None, latent_std=None)
loss.update(perceptual_weight=0.0, l1_weight=1.0, mse_weight=4.0, kl_weight=1e-4)
optimizer.update(lr=4e-3, eps=1e-8, betas=(0.9, 0.99))
lr_schedule.update(warmup_steps=50, cosine=True)
plugin = None
dtype = "fp32"  # processors without bfloat16 only emulate it
activation_checkpoint = False
max_steps = 1500
ema_decay = 0.99
log_every = 20
ckpt_every = 200
ckpt_keep = 2
outputs = "outputs/lab"
run_name = "vae"
