"""VideoVAE (1.3) against a discriminator: clips of 17 frames, 256 x 256.

    torchrun --nproc_per_node 8 scripts/train_vae.py configs/vae_v1_3/train/video_16z.py \\
        --data-path videos.csv

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.runtime import *
    from ..._base_.video import *
    from ..._base_.video_vae import *

dataset.update(num_frames=17, image_size=(256, 256))
vae.update(
    micro_batch_size=None,
    micro_batch_size_2d=None,
    micro_frame_size=None,
    temporal_overlap=False,
    latent_mean=None,
    latent_std=None,
)
discriminator = dict(
    type="PatchDiscriminator",
    from_pretrained=None,
    ignore_keys=(),
    in_channels=3,
    channels=64,  # of the first layer
    num_layers=3,
    dims=3,  # clips, not frames
    kernel_size=3,
    time_halvings=2,  # layers that halve time too
)

epochs = 100
ema_decay = None
outputs = "outputs/OpenSoraVAE_V1_3"
log_every = 1
wandb = True
batch_size = 1
num_workers = 16
mixed_frames.update(strategy="image", image_ratio=0.2)
optimizer.update(lr=5e-06, eps=1e-08)
lr_schedule.update(warmup_steps=1000, initial_lr=0.0)
