"""STDiT3-XL/2, stage 2: 720p, images and clips up to 113 frames.

    torchrun --nproc_per_node 8 scripts/train.py configs/opensora-v1-3/train/stage2.py \\
        --data-path videos.csv --ckpt-path STAGE1

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
    "720p": {1: (1.0, 30), 49: (1.0, 2), 65: (1.0, 1), 81: (1.0, 1), 97: (1.0, 1), 113: (1.0, 1)},
}
model.update(window_size=(-1, 8, 8), spatial_rope=True)
model.conditions.frames.update(always_inject=True)
vae.update(from_pretrained="hpcai-tech/OpenSora-VAE-v1.3", tile_size=4)
text_encoder.update(dtype="bf16")
scheduler.update(time_distribution="logit-normal", shift_time=True)

plugin = "zero1"
accumulation_steps = 2
ckpt_every = 250
sample_posterior = True
optimizer.update(lr=5e-05)
lr_schedule.update(warmup_steps=1000)
