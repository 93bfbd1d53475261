"""VideoVAE that streams, stage 2: clips of 1 to 65 frames, against a discriminator of frames.

    torchrun --nproc_per_node 8 scripts/train_vae.py configs/vae/train/streaming_long.py \\
        --data-path videos.csv

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from .streaming import *

dataset.update(num_frames=65)
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

outputs = "outputs/vae_streaming_long"
loss.update(learned_logvar=True)
gan.update(start=2001)
mixed_frames.update(strategy="random", image_ratio=0.0)
optimizer.update(lr=1e-5)
lr_schedule.update(warmup_steps=0)
