"""Open-Sora 1.3, text to video: released weights, 720p, 113 frames.

    python scripts/inference.py configs/opensora-v1-3/inference/t2v.py --prompt "a waterfall"

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
scheduler.update(shift_time=True, compat_bf16=True)
guidance.update(rescale=0.7)
guidance.scales.pop("frames")
guidance.scales.text.update(oscillate_from=10)

clean_prompts = True
resolution = "720p"
num_frames = 113
save_dir = "./samples/samples/"
trained.update(
    resolutions=["360p", "720p"],
    aspect_ratios=["9:16", "16:9", "3:4", "4:3", "1:1"],
    num_frames=[1, 49, 65, 81, 97, 113],
    given_frames=True,
    scores=True,
)
