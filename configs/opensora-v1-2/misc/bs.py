"""Search for the largest batch of each bucket whose step is as fast as that of 512, 408 frames.

    python scripts/search_batch_size.py configs/opensora-v1-2/misc/bs.py --data-path videos.csv

One GPU with 80 GB. Batch sizes on other GPUs: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.batch_search import *
    from ..._base_.rectified_flow import *
    from ..._base_.runtime import *
    from ..._base_.stacked_vae import *
    from ..._base_.stdit3 import *
    from ..._base_.t5 import *
    from ..._base_.video import *

bucket_config = {  # resolution: {frames: (guess, variance)}
    "144p": {1: (475, 0), 51: (51, 0), 102: (27, 0), 204: (13, 0), 408: (6, 0)},
    "240p": {1: (297, 200), 51: (20, 0), 102: (10, 0), 204: (5, 0), 408: (2, 0)},
    "512": {1: (141, 0), 51: (8, 0), 102: (4, 0), 204: (2, 0), 408: (1, 0)},
    "480p": {1: (89, 0), 51: (5, 0), 102: (2, 0), 204: (1, 0)},
    "1024": {1: (36, 0), 51: (1, 0)},
    "1080p": {1: (5, 0)},
    "2048": {1: (5, 0)},
}
model.update(round_timestep=True)
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

base = ("512", 408)
base_step_time = 12
sample_posterior = True
optimizer.update(lr=0.0002)
lr_schedule.update(initial_lr=0.0)
