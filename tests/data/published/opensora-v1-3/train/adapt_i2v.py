"""As published: configs/opensora-v1-3/train/adapt_i2v.py."""

dataset = dict(type="VariableVideoTextDataset", transform_name="resize_crop")
drop_condition = dict(cond=0.05, text=0.05, null=0.05, keep=0.85)
mask_types = dict(
    i2v_head=5, i2v_tail=2, i2v_loop=2, v2v_head=1, v2v_head_noisy=2, v2v_tail=1, other=1, none=2
)
grad_checkpoint = True
num_workers = 8
num_bucket_build_workers = 16
dtype = "bf16"
plugin = "zero2"
model = dict(
    type="STDiT3-XL/2",
    from_pretrained=None,
    qk_norm=True,
    enable_flash_attn=True,
    enable_layernorm_kernel=True,
    freeze_y_embedder=True,
    class_dropout_prob=0.1,
    kernel_size=(8, 8, -1),
    use_spatial_rope=True,
)
vae = dict(
    type="OpenSoraVAE_V1_3",
    from_pretrained="<site-local: OpenSora-VAE-v1.3>",
    z_channels=16,
    micro_batch_size=1,
    micro_batch_size_2d=4,
    micro_frame_size=17,
    use_tiled_conv3d=True,
    tile_size=4,
    normalization="video",
    temporal_overlap=True,
    force_huggingface=True,
)
text_encoder = dict(
    type="t5", from_pretrained="pretrained_models/t5-v1_1-xxl", model_max_length=300, shardformer=True
)
scheduler = dict(
    type="rflow",
    use_timestep_transform=True,
    sample_method="logit-normal",
    drop_condition={"cond": 0.05, "text": 0.05, "null": 0.05, "keep": 0.85},
)
seed = 4207
outputs = "outputs/"
wandb = False
epochs = 1000
log_every = 8
ckpt_every = 200
grad_clip = 1.0
lr = 0.0001
ema_decay = 0.99
adam_eps = 1e-15
warmup_steps = 1000
accumulation_steps = 1
bucket_config = {
    "360p": {49: (1.0, 10), 65: (1.0, 7), 81: (1.0, 6), 97: (1.0, 5), 113: (1.0, 4)},
    "720p": {49: (0.25, 2), 65: (0.25, 1), 81: (0.25, 1), 97: (0.25, 1), 113: (0.25, 1)},
}
