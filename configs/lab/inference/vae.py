"""The autoencoder of the lab encodes and decodes unseen clips. 8 channels, 1.4 million parameters.

Patches of 4 x 4 x 4 pixels become channels before the first layer, which is ten times as fast as levels.

    python scripts/inference_vae.py configs/lab/inference/vae.py

One core: 40 clips per second.
`python scripts/lab.py --ship` writes the last two lines.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.reconstruction import *
    from ..._base_.shapes import *
    from ..._base_.video_vae import *

dataset.update(split="unseen", size=200, num_frames=9, image_size=(32, 32))
batch_size = 1
dtype = "fp32"
fps = 8

vae.update(
    from_pretrained="assets/lab/vae.safetensors",
    latent_channels=8,
    channels=48,
    channel_multipliers=(1,),
    num_res_blocks=1,
    temporal_down=(),
    temporal_up=(),
    patch_size=(4, 4, 4),
    norm="pixel",
    attention="none",
    initial_logvar=-5.0,
    micro_batch_size=None,
    micro_batch_size_2d=None,
    micro_frame_size=None,
    temporal_overlap=False,
)
vae.update(latent_mean=[0.3184, 0.0154, 0.0817, 0.1847, -0.316, 0.5673, -0.0096, -0.2254])
vae.update(latent_std=[2.846, 2.2551, 1.8962, 2.7633, 2.898, 3.0344, 2.2914, 3.0837])
