"""Write latents and projected text features to files, for train/stage1_feat.py.

    python scripts/extract_features.py configs/opensora-v1-2/misc/extract.py --data-path videos.csv

One GPU with 80 GB. Clips per second: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.extraction import *
    from ..._base_.rectified_flow import *
    from ..._base_.stacked_vae import *
    from ..._base_.stdit3 import *
    from ..._base_.t5 import *
    from ..._base_.video import *

bucket_config = {  # resolution: {frames: (probability, batch size)}
    "144p": {
        1: (1.0, 475),
        51: (1.0, 51),
        102: ((1.0, 0.33), 27),
        204: ((1.0, 0.1), 13),
        408: ((1.0, 0.1), 6),
    },
    "256": {1: (0.4, 297), 51: (0.5, 20), 102: ((0.5, 0.33), 10), 204: ((0.5, 0.1), 5), 408: ((0.5, 0.1), 2)},
    "240p": {
        1: (0.3, 297),
        51: (0.4, 20),
        102: ((0.4, 0.33), 10),
        204: ((0.4, 0.1), 5),
        408: ((0.4, 0.1), 2),
    },
    "360p": {
        1: (0.2, 141),
        51: (0.15, 8),
        102: ((0.15, 0.33), 4),
        204: ((0.15, 0.1), 2),
        408: ((0.15, 0.1), 1),
    },
    "512": {1: (0.1, 141)},
    "480p": {1: (0.1, 89)},
    "720p": {1: (0.05, 36)},
    "1024": {1: (0.05, 36)},
    "1080p": {1: (0.1, 5)},
    "2048": {1: (0.1, 5)},
}
model.update(from_pretrained="hpcai-tech/OpenSora-STDiT-v3", round_timestep=True)
model.conditions.pop("frames")
vae.update(from_pretrained="hpcai-tech/OpenSora-VAE-v1.2")
vae.spatial.update(micro_batch_size=32)
text_encoder.update(dtype="bf16")
scheduler.update(frame_factor="chunk17")
guidance.scales.pop("frames")

save_compressed_text_features = True
sample_posterior = True
