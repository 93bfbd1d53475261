"""StackedVAE (1.2) on images: encode, decode, compare.

    python scripts/inference_vae.py configs/vae/inference/image.py --data-path images.csv

One GPU with 24 GB. PSNR: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.reconstruction import *
    from ..._base_.stacked_vae import *
    from ..._base_.video import *

dataset.update(num_frames=1, image_size=(256, 256), transform="center")
vae.update(from_pretrained="hpcai-tech/OpenSora-VAE-v1.2", micro_frame_size=None)

num_samples = 100
save_dir = "samples/vae_video"
cal_stats = True
batch_size = 1
num_workers = 4
loss.update(perceptual_weight=0.1)
