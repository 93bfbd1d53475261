"""The lab's autoencoder goes on with real clips: 17 frames, 48 x 48.

    torchrun --nproc_per_node 2 scripts/train_vae.py configs/lab/train/clips_vae.py \\
        --data-path outputs/demo/clips.csv

`make demo` runs it. One core: 0.8 seconds per step.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.runtime import *
    from ..._base_.video import *
    from ..inference.vae import vae

dataset.update(num_frames=17, image_size=(48, 48))
batch_size = 2
batches_per_step = 2  # 1 or 2 processes: the same training
num_workers = 0
loss.update(perceptual_weight=0.0, l1_weight=1.0, mse_weight=4.0, kl_weight=1e-4)
optimizer.update(lr=2e-3, eps=1e-8, betas=(0.9, 0.99))
lr_schedule.update(warmup_steps=20, cosine=True)
activation_checkpoint = False
max_steps = 160
ema_decay = 0.97
log_every = 10
ckpt_every = 80
ckpt_keep = 2
validate_every = 80
validation.update(num_batches=2)
outputs = "outputs/demo"
run_name = "vae"
