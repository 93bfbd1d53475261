"""The autoencoder of v1.3: one causal network, 4x in time, 8x in height and width, 16 channels."""

vae = dict(
    type="VideoVAE",
    from_pretrained=None,  # weights: a file, a folder or a hub id
    ignore_keys=(),  # starts of the names of parameters that the file may lack
    latent_channels=16,
    channels=128,  # width of the first level
    channel_multipliers=(1, 2, 4, 4),  # width of each level over `channels`
    num_res_blocks=2,  # per level of the encoder
    temporal_down=(1, 2),  # levels of the encoder that halve time
    temporal_up=(2, 3),  # levels of the decoder that double it
    micro_batch_size=1,  # clips at once; None is all
    micro_batch_size_2d=4,  # frames at once in 2D layers; None is all
    micro_frame_size=17,  # frames per chunk in time; None is one piece
    temporal_overlap=True,  # neighbouring chunks share one frame
    spatial_tile=None,  # height and width of a tile in latent cells (less memory, blended); None is no tiles
    spatial_overlap=8,  # cells that neighbouring tiles share at least
    tile_size=None,  # length of a tile of convolutions (same result, less memory); None is no tiles
    tile_axis=None,  # axis of the tiles: 2 time, 3 height, 4 width, None the longest
    num_tiles=None,  # number of tiles instead of tile_size
    norm="clip",  # "clip" (as published), "frame" or "pixel" (no norm sees another frame, or another place)
    attention="raster",  # "raster" (as published), "frame" (inside each frame) or "none"
    initial_logvar=0.0,  # added to the posterior's log variance of a new model; -5 is nearly deterministic
    patch_size=(1, 1, 1),  # frames, rows, columns of pixels folded into channels first; fast for small models
    patch_shortcut=False,  # True adds linear maps of patches to the networks; small models learn much faster
    # Mean and deviation of each latent channel: statistics of the published weights. None for others.
    latent_mean=[
        -0.19016949832439423,
        -0.04480062797665596,
        0.020789705216884613,
        0.01865335740149021,
        -0.011585569009184837,
        0.0010865575168281794,
        0.08378933370113373,
        0.08902134001255035,
        0.00940945465117693,
        0.08086848258972168,
        -0.07251627743244171,
        0.05052144080400467,
        -0.0209724809974432,
        -0.1223079189658165,
        -0.003862356534227729,
        -0.023072388023138046,
    ],
    latent_std=[
        0.9490776062011719,
        0.9594117999076843,
        0.9444302916526794,
        0.9103284478187561,
        0.959351658821106,
        0.8430351614952087,
        0.8888124823570251,
        0.9291136860847473,
        0.972594141960144,
        0.8917953968048096,
        0.8630853891372681,
        0.8279891610145569,
        0.9114300012588501,
        0.7922844886779785,
        0.8991407155990601,
        0.9473513960838318,
    ],
)
