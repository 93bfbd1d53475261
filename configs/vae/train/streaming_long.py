"""VideoVAE that streams, stage 2: clips of 1 to 65 frames, against a discriminator of frames.

    torchrun --nproc_per_node 8 scripts/train_vae.py configs/vae/train/streaming_long.py \\
        --data-path videos.csv

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.runtime import *
    from ..._base_.video import *
    from ..._base_.video_vae import *

dataset.update(num_frames=65, image_size=(256, 256))
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
discriminator = dict(
    type="PatchDiscriminator",
    from_pretrained=None,
    ignore_keys=(),
    in_channels=3,
    channels=64,  # of the first layer
    num_layers=3,
    dims=2,  # frames, so any length will do
    kernel_size=4,
    time_halvings=0,
)

epochs = 100
ema_decay = 0.999
outputs = "outputs/vae_streaming_long"
batch_size = 1
num_workers = 16
loss.update(learned_logvar=True)
gan.update(start=2001)
mixed_frames.update(strategy="random")
optimizer.update(lr=1e-5, eps=1e-08)
