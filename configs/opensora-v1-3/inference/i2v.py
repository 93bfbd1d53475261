"""Open-Sora 1.3, image to video: a reference image is the first frame.

    python scripts/inference.py configs/opensora-v1-3/inference/i2v.py \\
        --prompt "a waterfall" --reference-path image.png

One GPU with 80 GB. Seconds per video: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.inference import *
    from ..._base_.rectified_flow import *
    from ..._base_.stdit3 import *
    from ..._base_.t5 import *
    from ..._base_.video_vae import *

model.update(
    from_pretrained="hpcai-tech/OpenSora-STDiT-v4",
    window_size=(-1, 8, 8),
    spatial_rope=True,
    compat_bf16=True,
)
vae.update(from_pretrained="hpcai-tech/OpenSora-VAE-v1.3", tile_size=4)
scheduler.update(shift_time=True, renoise_reference=True, compat_bf16=True)
guidance.scales.frames.update(oscillate_from=10, ramp_from=1.0)
guidance.scales.text.update(oscillate_from=10)
condition_dropout = {}

clean_prompts = True
resolution = "360p"
num_frames = 113
cond_type = "i2v_head"
aes = 7.0
save_dir = "samples/i2v"
trained.update(
    resolutions=["360p", "720p"],
    aspect_ratios=["9:16", "16:9", "3:4", "4:3", "1:1"],
    num_frames=[1, 49, 65, 81, 97, 113],
    given_frames=True,
    scores=True,
)
