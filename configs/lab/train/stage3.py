"""The denoiser of the lab, stage 3: captions in changing words, more clips.

    python scripts/extract_features.py configs/lab/train/stage3.py --save-dir outputs/lab/features3
    python scripts/train.py configs/lab/train/stage3.py --ckpt-path outputs/lab/stage2 \\
        --dataset "{'type': 'FeatureDataset', 'data_path': 'outputs/lab/features3'}"

One core: about 0.2 seconds per step.
"""

from mmengine.config import read_base

with read_base():
    from .stage2 import *

dataset.update(size=12000, caption_style="mixed")
optimizer.update(lr=1e-3)
max_steps = 5000
run_name = "stage3"
