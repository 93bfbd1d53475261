"""CausalVideoVAE (Open-Sora-Plan 1.0): 17 frames, against a discriminator of frames.

    torchrun --nproc_per_node 8 scripts/train_vae.py configs/vae/train/causal_video_vae.py \\
        --data-path videos.csv

8 x 80 GB. Loss after 10k steps: to be measured.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.autoencoder import *
    from ..._base_.causal_video_vae import *
    from ..._base_.runtime import *
    from ..._base_.video import *

dataset.update(num_frames=17, image_size=(256, 256))
vae.update(micro_batch_size=None, micro_frame_size=None)
discriminator = dict(
    type="PatchDiscriminator",
    from_pretrained=None,
    ignore_keys=(),
    in_channels=3,
    channels=64,  # of the first layer
    num_layers=3,
    dims=2,  # frames, not clips
    kernel_size=4,
    time_halvings=0,
)

epochs = 100
outputs = "outputs/causal_video_vae"
batch_size = 1
num_workers = 16
loss.update(learned_logvar=True)
gan.update(start=2001)
mixed_frames.update(strategy="image", image_ratio=0.2)
optimizer.update(lr=1e-5, eps=1e-08, betas=(0.5, 0.9))
