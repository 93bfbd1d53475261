"""STDiT3-XL/2, image and video to video: reference frames as a condition.

    torchrun --nproc_per_node 8 scripts/train.py configs/opensora-v1-3/train/adapt_i2v.py \\
        --data-path videos.csv --ckpt-path STAGE2

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
    "360p": {49: (1.0, 10), 65: (1.0, 7), 81: (1.0, 6), 97: (1.0, 5), 113: (1.0, 4)},
    "720p": {49: (0.25, 2), 65: (0.25, 1), 81: (0.25, 1), 97: (0.25, 1), 113: (0.25, 1)},
}
model.update(window_size=(-1, 8, 8), spatial_rope=True, freeze=("conditions.text.",))
model.conditions.frames.update(
    always_inject=True,
    classes=dict(
        i2v_head=5, i2v_tail=2, i2v_loop=2, v2v_head=1, v2v_head_noisy=2, v2v_tail=1, other=1, none=2
    ),
)
vae.update(from_pretrained="hpcai-tech/OpenSora-VAE-v1.3", tile_size=4)
text_encoder.update(dtype="bf16")
scheduler.update(time_distribution="logit-normal", shift_time=True)
condition_dropout = {("frames",): 0.05, ("text",): 0.05, ("text", "frames"): 0.05}

seed = 4207
outputs = "outputs/"
log_every = 8
ckpt_every = 200
sample_posterior = True
lr_schedule.update(warmup_steps=1000)
