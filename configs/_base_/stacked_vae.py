"""The autoencoder of v1.2: one for images, and a causal one over its latents; 4x in time, 8x in space."""

vae = dict(
    type="StackedVAE",
    from_pretrained=None,  # weights: a file, a folder or a hub id
    ignore_keys=(),  # starts of the names of parameters that the file may lack
    spatial=dict(
        type="ImageVAE",
        from_pretrained=None,  # weights of this part alone, as above, or a folder of diffusers
        block_out_channels=(128, 256, 512, 512),  # width of each level
        layers_per_block=2,  # residual blocks per level
        latent_channels=4,
        norm_num_groups=32,  # groups of the norms
        scaling_factor=0.18215,  # of the latents
        micro_batch_size=4,  # frames at once; None is all
        initial_logvar=0.0,  # added to the log variance of a new posterior; -5 is nearly deterministic
    ),
    temporal=dict(
        type="TemporalVAE",
        from_pretrained=None,  # weights of this part alone
        in_channels=4,  # latent channels of the image part
        latent_channels=4,
        embed_channels=4,  # width of the bottleneck
        channels=128,  # width of the first level
        num_res_blocks=4,  # per level
        channel_multipliers=(1, 2, 2, 4),  # width of each level over `channels`
        temporal_down=(False, True, True),  # after which levels time is halved
        num_groups=32,  # groups of the norms
        initial_logvar=0.0,  # as in the image part
    ),
    micro_frame_size=17,  # frames per chunk in time; None is one piece
    shift=(-0.10, 0.34, 0.27, 0.98),  # mean of each latent channel
    scale=(3.85, 2.32, 2.33, 3.06),  # deviation of each latent channel
)
