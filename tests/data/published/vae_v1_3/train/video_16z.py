"""As published: configs/vae_v1_3/train/video_16z.py."""

num_frames = 17
image_size = (256, 256)
dataset = dict(
    type="VideoTextDataset",
    data_path=None,
    num_frames=17,
    frame_interval=1,
    image_size=(256, 256),
    transform_name="resize_crop",
)
num_workers = 16
dtype = "bf16"
grad_checkpoint = True
plugin = "zero2"
model = dict(type="OpenSoraVAE_V1_3", from_pretrained=None, z_channels=16)
discriminator = dict(
    type="N_LAYER_DISCRIMINATOR_3D",
    from_pretrained="<site-local: causalvae_v1.1.0 discriminator model.pt>",
    input_nc=3,
    n_layers=3,
    use_actnorm=False,
)
mixed_strategy = "mixed_video_image"
mixed_image_ratio = 0.2
vae_loss_config = dict(perceptual_loss_weight=1.0, kl_loss_weight=1e-06, logvar_init=0.0)
gan_loss_confg = dict(disc_start=0, disc_factor=1.0, disc_weight=0.5, disc_loss_type="hinge")
seed = 42
outputs = "outputs/OpenSoraVAE_V1_3"
wandb = True
epochs = 100
log_every = 1
ckpt_every = 500
load = None
batch_size = 1
lr = 5e-06
grad_clip = 1.0
warmup_steps = 1000
