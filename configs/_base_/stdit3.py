"""STDiT3-XL/2, the denoiser: 1.2 billion parameters."""

model = dict(
    type="STDiT3-XL/2",  # fixes depth=28, hidden_size=1152, num_heads=16; type="STDiT3" takes them as keys
    from_pretrained=None,  # weights: a file, a folder or a hub id
    ignore_keys=(),  # starts of names of parameters that the file may lack, such as ("conditions.frames",)
    adapt_channels=False,  # whether weights for fewer latent channels are spread over those of the vae
    conditions=dict(
        text=dict(
            type="TextCondition",
            projected=False,  # whether features arrive at the model's width
        ),
        size=dict(
            type="SizeCondition",
            fields=("fps",),  # of fps, height, width, num_frames
        ),
        frames=dict(
            type="FrameCondition",
            always_inject=False,  # add the biases of its layers even without a reference
            classes=None,  # training: weight of each class of given frames, such as dict(i2v_head=5, none=2)
            noise_range=(0.1, 0.3),  # share of noise in the reference of noisy classes
        ),
    ),
    mlp_ratio=4.0,  # width of the MLPs over the model's
    patch_size=(1, 2, 2),  # frames, rows, columns
    pred_sigma=True,  # twice the output channels; rectified flow reads the first half
    qk_norm=True,  # normalise queries and keys
    window_size=None,  # (frames, rows, columns) of temporal blocks, -1 is all; None is one position
    shift_window=False,  # move every second block's windows by half; released weights do not
    spatial_rope=False,  # rotary embedding in spatial blocks too; needs window_size
    skip_temporal=False,  # no temporal blocks: image training
    input_sq_size=512,  # side in pixels at which positions have scale 1
    final_layer="v1.3",  # "v1.3" modulates known frames twice, as released weights expect, "once" does not
    compat_bf16=False,  # in bf16, round positions and angles as the published code did
    round_timestep=False,  # round the time to the dtype of the weights, as v1.2 did
    freeze=(),  # starts of the names of parameters that are not trained, such as ("conditions.text.",)
    train_only=(),  # starts of the only ones that are trained; () is all
)
condition_dropout = {("text",): 0.1}  # conditions that are dropped together in training, and how often
