"""As published: configs/vae/inference/video.py."""

image_size = (256, 256)
num_frames = 17
fps = 24
dtype = "bf16"
batch_size = 1
seed = 42
save_dir = "samples/vae_video"
cal_stats = True
log_stats_every = 100
dataset = dict(
    type="VideoTextDataset",
    data_path=None,
    num_frames=17,
    image_size=(256, 256),
    transform_name="resize_crop",
)
num_samples = 100
num_workers = 4
model = dict(
    type="OpenSoraVAE_V1_2",
    from_pretrained="hpcai-tech/OpenSora-VAE-v1.2",
    micro_frame_size=None,
    micro_batch_size=4,
    cal_loss=True,
)
perceptual_loss_weight = 0.1
kl_loss_weight = 1e-06
