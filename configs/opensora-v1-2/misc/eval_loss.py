"""Loss of a 1.2 model by resolution, length and time.

    python scripts/evaluate_loss.py configs/opensora-v1-2/misc/eval_loss.py \\
        --data-path videos.csv --ckpt-path MODEL

One GPU with 80 GB. Loss of the released weights: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.evaluation import *
    from ..._base_.rectified_flow import *
    from ..._base_.stacked_vae import *
    from ..._base_.stdit3 import *
    from ..._base_.t5 import *
    from ..._base_.video import *

bucket_config = {  # resolution: {frames: (probability, batch size)}
    "144p": {1: (None, 100), 51: (None, 30), 102: (None, 20), 204: (None, 8), 408: (None, 4)},
    "240p": {1: (None, 100), 51: (None, 24), 102: (None, 12), 204: (None, 4), 408: (None, 2)},
    "360p": {1: (None, 60), 51: (None, 12), 102: (None, 6), 204: (None, 2), 408: (None, 1)},
    "480p": {1: (None, 40), 51: (None, 6), 102: (None, 3), 204: (None, 1)},
    "720p": {1: (None, 20), 51: (None, 2), 102: (None, 1)},
    "1080p": {1: (None, 10)},
    "2048": {1: (None, 5)},
}
model.update(round_timestep=True)
model.conditions.pop("frames")
vae.update(from_pretrained="hpcai-tech/OpenSora-VAE-v1.2")
text_encoder.update(dtype="bf16")
scheduler.update(frame_factor="chunk17")
guidance.scales.pop("frames")

sample_posterior = True
