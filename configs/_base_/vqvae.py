"""The autoencoder of VideoGPT: latents are vectors of a codebook; 4x in time, height and width."""

vae = dict(
    type="VQVAE",
    from_pretrained=None,  # weights: a file, a folder or a hub id
    ignore_keys=(),  # starts of the names of parameters that the file may lack
    latent_channels=256,  # length of the codebook's vectors
    num_codes=2048,  # number of them
    channels=240,  # width of the network
    num_res_layers=4,  # residual blocks of encoder and decoder each
    downsample=(4, 4, 4),  # strides of frames, rows and columns
    num_heads=2,  # of the attention along each axis
    causal=False,  # no layer sees later frames, and the first frame is coded alone
    norm="batch",  # as published; the causal form needs "pixel" or "frame"
    decay=0.99,  # of the codebook's moving averages, per step
    commitment=0.25,  # weight of the distance of latents to their vectors
    micro_batch_size=None,  # clips at once; None is all
    micro_frame_size=None,  # causal: frames per chunk, which continue each other; None is one piece
    spatial_tile=None,  # height and width of a tile in latent cells (less memory, blended); None is no tiles
    spatial_overlap=8,  # cells that neighbouring tiles share at least
    latent_mean=None,  # of each channel; None is 0
    latent_std=None,  # of each channel; None is 1
)
