"""STDiT3-XL/2 on 1.3 latents, adaptation to 16 channels: images only, from 1.2 weights.

    torchrun --nproc_per_node 8 scripts/train.py configs/opensora-v1-3/train/adapt.py \\
        --data-path videos.csv --ckpt-path WEIGHTS_1.2

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.rectified_flow import *
    from ..._base_.runtime import *
    from ..._base_.stdit3 import *
    from ..._base_.t5 import *
    from ..._base_.video import *
    from ..._base_.video_vae import *

bucket_config = {  # resolution: {frames: (probability, batch size)}
    "360p": {1: (1.0, 8)},
    "480p": {1: (0.3, 4)},
    "720p": {1: (0.2, 2)},
    "1080p": {1: (1.0, 1)},
    "2048": {1: (0.7, 1)},
}
model.update(adapt_channels=True, skip_temporal=True)
model.update(ignore_keys=("conditions.frames.", "temporal_blocks."))  # the weights lack these, or have more
model.conditions.frames.update(always_inject=True)
vae.update(
    from_pretrained="hpcai-tech/OpenSora-VAE-v1.3",
    temporal_overlap=False,
    tile_size=4,
    latent_mean=None,
    latent_std=None,
)
text_encoder.update(dtype="bf16")
scheduler.update(time_distribution="logit-normal", shift_time=True)

activation_checkpoint = False
sample_posterior = True
optimizer.update(eps=1e-08)
