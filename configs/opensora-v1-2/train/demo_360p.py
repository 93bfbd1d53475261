"""STDiT3-XL/2 on 1.2 latents: one bucket, 360p, 102 frames.

    torchrun --nproc_per_node 8 scripts/train.py configs/opensora-v1-2/train/demo_360p.py \\
        --data-path videos.csv

8 x 80 GB. Loss after 1k steps: to be measured.
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
    "360p": {102: (1.0, 1)},
}
model.update(round_timestep=True, freeze=("conditions.text.",))
model.conditions.pop("frames")
vae.update(from_pretrained="hpcai-tech/OpenSora-VAE-v1.2")
text_encoder.update(dtype="bf16")
scheduler.update(time_distribution="logit-normal", shift_time=True, frame_factor="chunk17")
guidance.scales.pop("frames")

ckpt_every = 200
sample_posterior = True
lr_schedule.update(warmup_steps=1000, initial_lr=0.0)
