"""A tiny autoencoder in the layout of 1.3 from nothing: 17 frames, 32 x 32, minutes on two CPU cores.

    torchrun --nproc_per_node 2 scripts/train_vae.py configs/opensora-v1-3/train/demo_vae.py \\
        --data-path outputs/demo/clips.csv

On clips such as those that `make demo` cuts. Two cores: about 4 minutes, then about 23 dB on its own clips.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.runtime import *
    from ..._base_.video import *
    from ..._base_.video_vae import *

dataset.update(num_frames=17, image_size=(32, 32))
batch_size = 2
batches_per_step = 2  # 1 or 2 processes: the same training
num_workers = 0
vae.update(
    latent_channels=8,
    channels=32,
    channel_multipliers=(1, 1, 2, 2),
    num_res_blocks=1,
    micro_batch_size=None,
    micro_batch_size_2d=None,
    micro_frame_size=None,
    temporal_overlap=False,
    latent_mean=None,
    latent_std=None,
    initial_logvar=-5.0,
)
loss.update(perceptual_weight=0.0, l1_weight=1.0, mse_weight=2.0, kl_weight=1e-4)
optimizer.update(lr=3e-3, eps=1e-8)
lr_schedule.update(warmup_steps=20, cosine=True)
activation_checkpoint = False
max_steps = 400
ema_decay = 0.97
log_every = 10
ckpt_every = 200
ckpt_keep = 2
validate_every = 200
validation.update(num_batches=2)
outputs = "outputs/tiny"
run_name = "vae"
