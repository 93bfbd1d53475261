"""Videos from the tiny models of train/demo_vae.py and train/demo.py: 17 frames, 32 x 32.

    python scripts/inference.py configs/opensora-v1-3/inference/demo.py --ckpt-path outputs/tiny/stdit3 \\
        --vae.from_pretrained outputs/tiny/vae --prompt "a young man with a red bow tie talks in a car"

Two cores: about a second per video.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.inference import *
    from ..._base_.rectified_flow import *
    from ..._base_.sentence import *
    from ..._base_.stdit3 import *
    from ..._base_.video_vae import *
    from ..train.demo import model, scheduler, text_encoder, vae

image_size = (32, 32)
num_frames = 17
fps = 25
dtype = "fp32"
guidance.update(scales=dict(text=dict(scale=2.0, oscillate_from=None, ramp_from=None, interval=None)))
save_dir = "outputs/tiny/samples"
trained.update(
    num_frames=[17],
    given_frames=False,
    prompts=[
        "a young man with a red bow tie talks in a car",
        "a big grey rabbit stretches on a green meadow",
    ],
)
