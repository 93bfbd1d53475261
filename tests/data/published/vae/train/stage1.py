"""As published: configs/vae/train/stage1.py."""

num_frames = 17
image_size = (256, 256)
dataset = dict(
    type="VideoTextDataset", data_path=None, num_frames=17, frame_interval=1, image_size=(256, 256)
)
num_workers = 16
dtype = "bf16"
grad_checkpoint = True
plugin = "zero2"
model = dict(type="OpenSoraVAE_V1_2", freeze_vae_2d=True, from_pretrained=None, cal_loss=True)
perceptual_loss_weight = 0.1
kl_loss_weight = 1e-06
mixed_strategy = "mixed_video_image"
mixed_image_ratio = 0.2
use_real_rec_loss = False
use_z_rec_loss = True
use_image_identity_loss = True
seed = 42
outputs = "outputs/vae_stage1"
wandb = False
epochs = 100
log_every = 1
ckpt_every = 1000
load = None
batch_size = 1
lr = 1e-05
grad_clip = 1.0
