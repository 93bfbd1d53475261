"""STDiT3-XL/2, before stage 1: no windows yet, clips of whole chunks of 17 frames.

    torchrun --nproc_per_node 8 scripts/train.py configs/opensora-v1-3/train/stage1_nk.py \\
        --data-path videos.csv --ckpt-path ADAPTED

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
    "360p": {1: (1.0, 60), 51: (1.0, 5), 68: (1.0, 3), 85: (1.0, 3), 102: (1.0, 2), 119: (1.0, 2)},
}
model.update(ignore_keys=("temporal_blocks.",))  # the adapted weights have none
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

ckpt_every = 200
sample_posterior = True
optimizer.update(eps=1e-08)
