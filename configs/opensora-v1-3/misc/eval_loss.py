"""Loss of a 1.3 model by resolution, length and time.

    python scripts/evaluate_loss.py configs/opensora-v1-3/misc/eval_loss.py \\
        --data-path videos.csv --ckpt-path MODEL

One GPU with 80 GB. Loss of the released weights: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.evaluation import *
    from ..._base_.rectified_flow import *
    from ..._base_.stdit3 import *
    from ..._base_.t5 import *
    from ..._base_.video import *
    from ..._base_.video_vae import *

bucket_config = {  # resolution: {frames: (probability, batch size)}
    "360p": {113: (None, 6)},
}
model.update(window_size=(-1, 8, 8), spatial_rope=True)
model.conditions.frames.update(always_inject=True)
vae.update(from_pretrained="hpcai-tech/OpenSora-VAE-v1.3", tile_size=4)
text_encoder.update(dtype="bf16")

sample_posterior = True
