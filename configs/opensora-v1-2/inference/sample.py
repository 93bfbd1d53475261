"""Open-Sora 1.2, text to video and the mask strategies: released weights, 240p, 2 seconds.

    python scripts/inference.py configs/opensora-v1-2/inference/sample.py --prompt "a waterfall"

One GPU with 24 GB. Seconds per video: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.inference import *
    from ..._base_.rectified_flow import *
    from ..._base_.stacked_vae import *
    from ..._base_.stdit3 import *
    from ..._base_.t5 import *

model.update(from_pretrained="hpcai-tech/OpenSora-STDiT-v3", compat_bf16=True, round_timestep=True)
model.conditions.pop("frames")
vae.update(from_pretrained="hpcai-tech/OpenSora-VAE-v1.2")
scheduler.update(shift_time=True, frame_factor="chunk17", compat_bf16=True)
guidance.scales.pop("frames")
guidance.scales.text.update(scale=7.0)

save_fps = 24
align = 5
clean_prompts = True
aes = 6.5
score_format = "numbers"
save_dir = "./samples/samples/"
trained.update(
    resolutions=["144p", "240p", "360p", "480p", "720p"],
    num_frames=[1, 51, 102, 204, 408],
    given_frames=True,
    scores=True,
)
