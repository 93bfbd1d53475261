"""The autoencoder of Open-Sora-Plan 1.0: a 2D one grown into time, 4x in time, 8x in space, 4 channels."""

vae = dict(
    type="CausalVideoVAE",
    from_pretrained=None,  # weights: a file, a folder or a hub id
    ignore_keys=(),  # starts of the names of parameters that the file may lack
    latent_channels=4,
    channels=128,  # width of the first level
    channel_multipliers=(1, 2, 4, 4),  # width of each level over `channels`
    num_res_blocks=2,  # per level of the encoder
    # Blocks behind each level, by name; "" is none. Time also has TimeDownsampleRes2x and TimeUpsampleRes2x.
    spatial_down=(
        "SpatialDownsample2x",
        "SpatialDownsample2x",
        "SpatialDownsample2x",
        "",
    ),  # halve rows, columns
    time_down=("TimeDownsample2x", "TimeDownsample2x", "", ""),  # halve time
    spatial_up=("", "SpatialUpsample2x", "SpatialUpsample2x", "SpatialUpsample2x"),  # of the decoder's levels
    time_up=("", "", "TimeUpsample2x", "TimeUpsample2x"),  # of the decoder's levels
    norm="frame",  # "frame" or "pixel"; "clip" sees later frames, as released weights do
    attention="frame",  # inside each frame; "none" or "raster" (every earlier token)
    time_upsample="hold",  # "hold" repeats frames; "linear" mixes neighbours, as released weights do
    image_weights=None,  # a diffusers AutoencoderKL, file or folder, that a new model starts from
    inflation="tail",  # where its weights go: "tail" (the current frame), "centre" or "mean"
    micro_batch_size=1,  # clips at once; None is all
    micro_frame_size=17,  # frames per chunk in time; None is one piece. Chunks continue each other
    temporal_overlap=False,  # for norm="clip": neighbouring chunks share one frame
    spatial_tile=None,  # height and width of a tile in latent cells (less memory, blended); None is no tiles
    spatial_overlap=8,  # cells that neighbouring tiles share at least
    latent_mean=None,  # of each channel; None is 0
    initial_logvar=0.0,  # added to the posterior's log variance of a new model; -5 is nearly deterministic
    latent_std=[5.489980785067252] * 4,  # of each channel: 1 / 0.18215
)
