"""Inference with networks that a test makes: random weights, 24 pixels, on a CPU in a second."""

_base_ = [
    "../../configs/_base_/inference.py",
    "../../configs/_base_/rectified_flow.py",
    "../../configs/_base_/sentence.py",
    "../../configs/_base_/stdit3.py",
    "../../configs/_base_/video_vae.py",
]

model = dict(
    type="STDiT3",
    hidden_size=48,
    depth=1,
    num_heads=2,
    window_size=(-1, 2, 2),
    spatial_rope=True,
    input_sq_size=32,
    pred_sigma=False,
    final_layer="once",
)
vae = dict(
    latent_channels=4,
    channels=32,
    channel_multipliers=(1, 1, 1, 1),
    num_res_blocks=1,
    micro_frame_size=5,
    latent_mean=None,
    latent_std=None,
)
text_encoder = dict(max_length=16)
scheduler = dict(num_sampling_steps=2, shift_time=True)
guidance = dict(
    scales=dict(_delete_=True, text=dict(scale=3.0, oscillate_from=None, ramp_from=None, interval=None))
)

dtype = "fp32"
image_size = (16, 24)
num_frames = 5
fps = 8
weight_hashes = None
