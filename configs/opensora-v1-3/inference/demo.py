"""Videos from the models of the demo: 17 frames, 48 x 48.

    python scripts/inference.py configs/opensora-v1-3/inference/demo.py --ckpt-path outputs/demo/stdit3 \\
        --vae.from_pretrained outputs/demo/vae --prompt "a young man with a red bow tie talks in a car"
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.inference import *
    from ..train.demo import guidance, model, scheduler, text_encoder, vae

image_size = (48, 48)
num_frames = 17
fps = 25
dtype = "fp32"
guidance.update(scales=dict(text=dict(scale=2.0, oscillate_from=None, ramp_from=None)))
save_dir = "outputs/demo/samples"
