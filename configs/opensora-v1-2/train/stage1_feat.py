"""Stage 1 on features that misc/extract.py wrote.

    torchrun --nproc_per_node 8 scripts/train.py configs/opensora-v1-2/train/stage1_feat.py \\
        --data-path FEATURES

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.features import *
    from ..._base_.rectified_flow import *
    from ..._base_.runtime import *
    from ..._base_.stdit3 import *

model.update(round_timestep=True, freeze=("conditions.text.",), in_channels=4)
model.conditions.pop("frames")
model.conditions.text.update(projected=True, text_width=4096, text_length=300)
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

optimizer.update(lr=0.0002)
lr_schedule.update(initial_lr=0.0)
