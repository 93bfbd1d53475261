"""The denoiser of the lab, stage 3: frames are given in half of the clips, for images, extension and more.

    python scripts/train.py configs/lab/train/stage3.py --ckpt-path outputs/lab/stage2 \\
        --dataset "{'type': 'FeatureDataset', 'data_path': 'outputs/lab/features2'}"

One core: about 0.3 seconds per step.
"""

from mmengine.config import read_base

with read_base():
    from .stage2 import *

frame_mask = dict(
    type="FrameMask", ratios=dict(image_head=0.3, quarter_head=0.1, image_tail=0.05, image_head_tail=0.05)
)
optimizer.update(lr=1e-3)
max_steps = 300
run_name = "stage3"
