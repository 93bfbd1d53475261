"""The denoiser of the lab, stage 2: frames are given in a part of the clips, and the learning rate falls.

    python scripts/train.py configs/lab/train/stage2.py --ckpt-path outputs/lab/stage1 \\
        --dataset "{'type': 'FeatureDataset', 'data_path': 'outputs/lab/features'}"

One core: about 0.2 seconds per step.
"""

from mmengine.config import read_base

with read_base():
    from .stage1 import *

frame_mask = dict(
    type="FrameMask", ratios=dict(image_head=0.2, quarter_head=0.05, image_tail=0.05, image_head_tail=0.05)
)
lr_schedule.update(cosine=True)
ema_decay = 0.998
max_steps = 12000
run_name = "stage2"
