"""The denoiser of the lab, stage 1: 9 frames, 32 x 32, plain captions, constant learning rate.

    python scripts/extract_features.py configs/lab/train/stage1.py --save-dir outputs/lab/features
    python scripts/train.py configs/lab/train/stage1.py \\
        --dataset "{'type': 'FeatureDataset', 'data_path': 'outputs/lab/features'}"

One core: about 0.2 seconds per step.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.rectified_flow import *
    from ..._base_.runtime import *
    from ..._base_.sentence import *
    from ..._base_.shapes import *
    from ..._base_.stdit3 import *
    from ..inference.vae import vae

dataset.update(size=6000, num_frames=9, image_size=(32, 32), caption_style="canonical")
batch_size = 16
text_encoder.update(max_length=32)
model.update(
    type="STDiT3",
    hidden_size=144,
    depth=2,
    num_heads=4,
    window_size=(-1, -1, -1),  # temporal blocks see everything: half as deep as with lines
    spatial_rope=True,
    input_sq_size=32,
    pred_sigma=False,
    final_layer="once",
)
model.conditions.pop("frames")
guidance.scales.pop("frames")
guidance.scales.text.update(scale=4.0, interval=(0.15, 1.0))
condition_dropout = {("text",): 0.1}
scheduler.update(time_distribution="logit-normal", frame_factor="latent")
optimizer.update(lr=2e-3, eps=1e-8, betas=(0.9, 0.99))
lr_schedule.update(warmup_steps=50)
plugin = None
dtype = "fp32"  # processors without bfloat16 only emulate it
activation_checkpoint = False
max_steps = 5000
ema_decay = 0.995
log_every = 20
ckpt_every = 200
ckpt_keep = 2
outputs = "outputs/lab"
run_name = "stage1"
