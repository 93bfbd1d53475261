"""STDiT3-XL/2, stage 1 with degraded input: the model learns to restore the clean clip.

    torchrun --nproc_per_node 8 scripts/train.py configs/opensora-v1-3/train/stage1_noise.py \\
        --data-path videos.csv --ckpt-path STAGE1

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.rectified_flow import *
    from ..._base_.runtime import *
    from ..._base_.stdit3 import *
    from ..._base_.t5 import *
    from ..._base_.video import *
    from ..._base_.video_vae import *

bucket_config = {  # resolution: {frames: (probability, batch size)}
    "360p": {1: (1.0, 60), 49: (1.0, 5), 65: (1.0, 3), 81: (1.0, 3), 97: (1.0, 2), 113: (1.0, 2)},
}
model.update(window_size=(-1, 8, 8), spatial_rope=True)
model.conditions.frames.update(always_inject=True)
vae.update(from_pretrained="hpcai-tech/OpenSora-VAE-v1.3", tile_size=4)
text_encoder.update(dtype="bf16")
scheduler.update(time_distribution="logit-normal", shift_time=True)
noise_augmentation = dict(
    gaussian_pixel=dict(probability=0.5, strength=0.4),
    downsample_spatial=dict(probability=0.2, strength=(2, 4, 4, 8, 8, 8, 8)),
    downsample_temporal=dict(probability=0.2, strength=(2, 4, 8)),
)

ckpt_every = 250
sample_posterior = True
