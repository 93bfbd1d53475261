"""The denoiser of the lab, stage 4: parts of longer clips, so that it can begin where another clip ended.

    python scripts/extract_features.py configs/lab/train/stage4.py --save-dir outputs/lab/features4
    python scripts/train.py configs/lab/train/stage4.py --ckpt-path outputs/lab/stage3 \\
        --dataset "{'type': 'FeatureDataset', 'data_path': 'outputs/lab/features4'}"

One core: about 0.2 seconds per step.
"""

from mmengine.config import read_base

with read_base():
    from .stage3 import *

dataset.update(size=6000, num_frames=25, path="endless")
latent_window = dict(frames=3, given=1, begin=0.5)
max_steps = 15000
run_name = "stage4"
