"""VideoVAE (1.3) on images: encode, decode, compare.

    python scripts/inference_vae.py configs/vae_v1_3/inference/image_16z.py \\
        --data-path images.csv --ckpt-path MODEL

One GPU with 24 GB. PSNR: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.reconstruction import *
    from ..._base_.video import *
    from ..._base_.video_vae import *

dataset.update(num_frames=1, image_size=(1024, 1024))
vae.update(
    micro_frame_size=None,
    temporal_overlap=False,
    tile_size=16,
    latent_mean=None,
    latent_std=None,
)

num_samples = 1000
save_dir = "samples/OpenSoraVAE_V1_3_vae/image"
cal_stats = True
batch_size = 1
num_workers = 4
