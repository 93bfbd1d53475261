"""The autoencoder of the lab encodes and decodes unseen clips. 16 channels, 1.4 million parameters.

Patches of 4 x 4 x 4 pixels become channels before the first layer, which is ten times as fast as levels.
Linear maps of the patches stand beside the networks, so that training starts from a rough picture.

    python scripts/inference_vae.py configs/lab/inference/vae.py

One core: 40 clips per second.
`python scripts/lab.py --ship` writes the last lines.
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
    latent_channels=16,
    channels=48,
    channel_multipliers=(1,),
    num_res_blocks=1,
    temporal_down=(),
    temporal_up=(),
    patch_size=(4, 4, 4),
    patch_shortcut=True,
    norm="pixel",
    attention="none",
    initial_logvar=-5.0,
    micro_batch_size=None,
    micro_batch_size_2d=None,
    micro_frame_size=None,
    temporal_overlap=False,
)
# fmt: off
vae.update(
    latent_mean=[
        0.4155, 0.3308, -0.6873, 0.0024, -0.0213, -0.0075, -0.0161, 0.0078, -0.0058, 0.0545,
        -0.0027, 0.0022, -0.0056, 0.0054, 0.0016, -0.0165,
    ],
    latent_std=[
        2.8948, 1.4365, 1.6009, 0.8972, 0.8801, 0.7137, 0.7603, 0.7235, 0.7525, 0.9573, 0.5604,
        0.5628, 0.7782, 0.815, 0.5229, 0.5956,
    ],
)
# fmt: on
