"""The denoiser of the lab, stage 2: captions in changing words, and the learning rate falls.

    python scripts/extract_features.py configs/lab/train/stage2.py --save-dir outputs/lab/features2
    python scripts/train.py configs/lab/train/stage2.py --ckpt-path outputs/lab/stage1 \\
        --dataset "{'type': 'FeatureDataset', 'data_path': 'outputs/lab/features2'}"

One core: about 0.3 seconds per step.
"""

from mmengine.config import read_base

with read_base():
    from .stage1 import *

dataset.update(caption_style="varied")
lr_schedule.update(cosine=True)
max_steps = 800
run_name = "stage2"
