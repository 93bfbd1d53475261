"""VideoVAE that streams: the layout of 1.3 with norms and attention that see no later frame; 17 frames.

    torchrun --nproc_per_node 8 scripts/train_vae.py configs/vae/train/streaming.py --data-path videos.csv

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
    norm="pixel",
    attention="none",  # it would let tiles see less than the whole
    spatial_overlap=12,  # cells; more than 45 dB from the whole
    micro_batch_size=None,
    micro_batch_size_2d=None,
    micro_frame_size=None,
    temporal_overlap=False,
    latent_mean=None,
    latent_std=None,
)

epochs = 100
ema_decay = 0.999
outputs = "outputs/vae_streaming"
batch_size = 1
num_workers = 16
mixed_frames.update(strategy="image", image_ratio=0.2)
optimizer.update(lr=1e-4, eps=1e-08)
lr_schedule.update(warmup_steps=1000)
