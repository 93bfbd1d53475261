"""STDiT3-XL/2 on 1.2 latents, adaptation: images and short clips, from image weights.

    torchrun --nproc_per_node 8 scripts/train.py configs/opensora-v1-2/train/adapt.py \\
        --data-path videos.csv --ckpt-path WEIGHTS

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
    "144p": {1: (0.5, 48), 34: (1.0, 2), 51: (1.0, 4), 102: (1.0, 2), 204: (1.0, 1)},
    "256": {1: (0.6, 20), 34: (0.5, 2), 51: (0.5, 1), 68: (0.5, 1), 136: (0.0, None)},
    "240p": {1: (0.6, 20), 34: (0.5, 2), 51: (0.5, 1), 68: (0.5, 1), 136: (0.0, None)},
    "360p": {1: (0.5, 8), 34: (0.2, 1), 102: (0.0, None)},
    "512": {1: (0.5, 8), 34: (0.2, 1), 102: (0.0, None)},
    "480p": {1: (0.2, 4), 17: (0.3, 1), 68: (0.0, None)},
    "720p": {1: (0.1, 2)},
    "1024": {1: (0.1, 2)},
    "1080p": {1: (0.1, 1)},
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

activation_checkpoint = False
sample_posterior = True
lr_schedule.update(initial_lr=0.0)
