"""STDiT3-XL/2 on the buckets of stage 1 at the highest rate of checkpoints: for timing.

    torchrun --nproc_per_node 8 scripts/train.py configs/opensora-v1-2/misc/feat.py \\
        --data-path videos.csv

8 x 80 GB. Steps per second: to be measured.

The published file stands in zeros for captions; here they are encoded.
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
    "256": {1: (0.4, 297), 51: (0.5, 20), 102: ((0.5, 0.33), 10), 204: ((0.5, 0.1), 5), 408: ((0.5, 0.1), 2)},
    "240p": {
        1: (0.3, 297),
        51: (0.4, 20),
        102: ((0.4, 0.33), 10),
        204: ((0.4, 0.1), 5),
        408: ((0.4, 0.1), 2),
    },
    "360p": {
        1: (0.2, 141),
        51: (0.15, 8),
        102: ((0.15, 0.33), 4),
        204: ((0.15, 0.1), 2),
        408: ((0.15, 0.1), 1),
    },
    "512": {1: (0.1, 141)},
    "480p": {1: (0.1, 89)},
    "720p": {1: (0.05, 36)},
    "1024": {1: (0.05, 36)},
    "1080p": {1: (0.1, 5)},
    "2048": {1: (0.1, 5)},
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
        random=0.2,
        interpolate=0.01,
        quarter_random=0.01,
        quarter_head=0.01,
        quarter_tail=0.01,
        quarter_head_tail=0.01,
        image_random=0.05,
        image_head=0.1,
        image_tail=0.05,
        image_head_tail=0.05,
    ),
)

ckpt_every = 1
num_workers = 0
sample_posterior = True
optimizer.update(lr=0.0002)
lr_schedule.update(initial_lr=0.0)
