"""The lab's STDiT3 goes on with real clips and their captions: 17 frames, 48 x 48.

    torchrun --nproc_per_node 2 scripts/train.py configs/lab/train/clips.py \\
        --data-path outputs/demo/clips.csv --vae.from_pretrained outputs/demo/vae

`make demo` runs it after clips_vae.py, on cached features. One core: 0.3 seconds per step.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.rectified_flow import *
    from ..._base_.runtime import *
    from ..._base_.video import *
    from ..inference.t2v import model, text_encoder
    from ..inference.vae import vae

dataset.update(num_frames=17, image_size=(48, 48))
batch_size = 2
batches_per_step = 2  # 1 or 2 processes: the same training
num_workers = 0
condition_dropout = {("text",): 0.1}
scheduler.update(time_distribution="logit-normal", frame_factor="latent")
guidance.scales.pop("frames")
optimizer.update(lr=1.5e-3, eps=1e-8, betas=(0.9, 0.99))
lr_schedule.update(warmup_steps=20, cosine=True)
activation_checkpoint = False
max_steps = 1600
ema_decay = 0.99
log_every = 10
ckpt_every = 400
ckpt_keep = 2
validate_every = 400
outputs = "outputs/demo"
run_name = "stdit3"
