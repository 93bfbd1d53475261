"""Losses of an autoencoder and its discriminator."""

loss = dict(
    perceptual_weight=1.0,  # of LPIPS
    l1_weight=1.0,  # of the absolute error of pixels
    mse_weight=0.0,  # of the squared error of pixels; it sees small things that the absolute one overlooks
    kl_weight=1e-6,  # of the bottleneck's loss
    logvar_init=0.0,  # logarithm of the variance that weighs the reconstruction
    real_reconstruction=True,  # compare pixels
    latent_reconstruction=False,  # StackedVAE: compare the latents of the image part
    image_identity=False,  # StackedVAE: keep the latents of images as they are
)
discriminator = None  # or dict(type="PatchDiscriminator", ...): train against it
gan = dict(
    start=0,  # first step with the discriminator
    generator_weight=0.5,  # of the autoencoder's adversarial loss
    discriminator_weight=1.0,  # of both adversarial losses
    loss="hinge",  # of the discriminator: "hinge" or "vanilla"
)
mixed_frames = dict(
    strategy=None,  # None, "image" (some batches keep their first frame only) or "random" (a random length)
    image_ratio=0.0,  # for "image": share of such batches
)
frozen = ()  # starts of the names of parameters of the vae that are not trained, such as ("spatial_vae.",)
