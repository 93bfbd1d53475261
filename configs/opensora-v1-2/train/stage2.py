"""STDiT3-XL/2 on 1.2 latents, stage 2 (23k steps as published): more of the long and large clips.

    torchrun --nproc_per_node 8 scripts/train.py configs/opensora-v1-2/train/stage2.py \\
        --data-path videos.csv --ckpt-path STAGE1

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.rectified_flow import *
    from ..._base_.runtime import *
    from ..._base_.stacked_vae import *
    from ..._base_.stdit3 import *
    from ..._base_.t5 import *
    from ..._base_.video import *

bucket_config = {  # resolution: {frames: (probability, batch size)}
    "144p": {
        1: (1.0, 475),
        51: (1.0, 51),
        102: ((1.0, 0.33), 27),
        204: ((1.0, 0.1), 13),
        408: ((1.0, 0.1), 6),
    },
    "256": {1: (0.4, 297), 51: (0.5, 20), 102: ((0.5, 0.33), 10), 204: ((0.5, 1.0), 5), 408: ((0.5, 1.0), 2)},
    "240p": {
        1: (0.3, 297),
        51: (0.4, 20),
        102: ((0.4, 0.33), 10),
        204: ((0.4, 1.0), 5),
        408: ((0.4, 1.0), 2),
    },
    "360p": {1: (0.5, 141), 51: (0.15, 8), 102: ((0.3, 0.5), 4), 204: ((0.3, 1.0), 2), 408: ((0.5, 0.5), 1)},
    "512": {1: (0.4, 141), 51: (0.15, 8), 102: ((0.2, 0.4), 4), 204: ((0.2, 1.0), 2), 408: ((0.4, 0.5), 1)},
    "480p": {1: (0.5, 89), 51: (0.2, 5), 102: (0.2, 2), 204: (0.1, 1)},
    "720p": {1: (0.1, 36), 51: (0.03, 1)},
    "1024": {1: (0.1, 36), 51: (0.02, 1)},
    "1080p": {1: (0.01, 5)},
    "2048": {1: (0.01, 5)},
}
model.update(round_timestep=True, freeze=("conditions.text.",))
model.conditions.pop("frames")
vae.update(from_pretrained="hpcai-tech/OpenSora-VAE-v1.2")
text_encoder.update(dtype="bf16")
scheduler.update(time_distribution="logit-normal", shift_time=True, frame_factor="chunk17")
guidance.scales.pop("frames")
frame_mask = dict(
    type="FrameMask",
    ratios=dict(
        random=0.005,
        interpolate=0.002,
        quarter_random=0.007,
        quarter_head=0.002,
        quarter_tail=0.002,
        quarter_head_tail=0.002,
        image_random=0.0,
        image_head=0.22,
        image_tail=0.005,
        image_head_tail=0.005,
    ),
)

ckpt_every = 200
sample_posterior = True
lr_schedule.update(initial_lr=0.0)
