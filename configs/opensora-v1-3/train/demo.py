"""A tiny STDiT3 in the layout of 1.3 from nothing: 17 frames, 32 x 32, minutes on two CPU cores.

    torchrun --nproc_per_node 2 scripts/train.py configs/opensora-v1-3/train/demo.py \\
        --data-path outputs/demo/clips.csv --vae.from_pretrained outputs/tiny/vae

After demo_vae.py, on clips such as those that `make demo` cuts: about 4 minutes on two cores.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.rectified_flow import *
    from ..._base_.runtime import *
    from ..._base_.sentence import *
    from ..._base_.stdit3 import *
    from ..._base_.video import *
    from ..._base_.video_vae import *

dataset.update(num_frames=17, image_size=(32, 32))
batch_size = 4
batches_per_step = 2  # 1 or 2 processes: the same training
num_workers = 0
vae.update(
    latent_channels=8,
    channels=32,
    channel_multipliers=(1, 1, 2, 2),
    num_res_blocks=1,
    micro_frame_size=None,
    temporal_overlap=False,
    latent_mean=None,
    latent_std=None,
)
text_encoder.update(max_length=32)
model.update(
    type="STDiT3",
    patch_size=(1, 1, 1),
    hidden_size=192,
    depth=4,
    num_heads=4,
    window_size=(-1, 2, 2),
    shift_window=True,
    spatial_rope=True,
    input_sq_size=32,
    pred_sigma=False,
    final_layer="once",
)
condition_dropout = {("text",): 0.1}
scheduler.update(time_distribution="logit-normal", frame_factor="latent")
optimizer.update(lr=1e-3, eps=1e-8)
lr_schedule.update(warmup_steps=20, cosine=True)
activation_checkpoint = False
max_steps = 600
ema_decay = 0.98
log_every = 10
ckpt_every = 200
ckpt_keep = 2
validate_every = 200
outputs = "outputs/tiny"
run_name = "stdit3"
