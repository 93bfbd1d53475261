"""As published: configs/opensora-v1-3/misc/eval_loss.py."""

num_workers = 8
dtype = "bf16"
seed = 42
num_eval_timesteps = 10
dataset = dict(type="VariableVideoTextDataset", transform_name="resize_crop")
model = dict(
    type="STDiT3-XL/2",
    from_pretrained=None,
    qk_norm=True,
    enable_flash_attn=True,
    enable_layernorm_kernel=True,
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
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=300)
scheduler = dict(type="rflow")
bucket_config = {
    "360p": {113: (None, 6)},
}
