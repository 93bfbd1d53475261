"""VideoVAE (1.3) on clips of 51 frames, 256 x 256: encode, decode, compare.

    python scripts/inference_vae.py configs/vae_v1_3/inference/video_16z_256x256.py \\
        --data-path videos.csv --ckpt-path MODEL

One GPU with 24 GB. PSNR: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.reconstruction import *
    from ..._base_.video import *
    from ..._base_.video_vae import *

dataset.update(num_frames=51, image_size=(256, 256))
vae.update(temporal_overlap=False, tile_size=16, latent_mean=None, latent_std=None)

num_samples = 100
save_dir = "samples/OpenSoraVAE_V1_3_vae_16z"
cal_stats = True
batch_size = 1
num_workers = 4
