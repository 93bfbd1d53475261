"""Losses of an autoencoder and its discriminator."""

loss = dict(
    perceptual_weight=1.0,  # of LPIPS
    l1_weight=1.0,  # of the absolute error of pixels
    mse_weight=0.0,  # of the squared error of pixels; it sees small things that the absolute one overlooks
    kl_weight=1e-6,  # of the bottleneck's loss
    logvar_init=0.0,  # logarithm of the variance that weighs the reconstruction
    learned_logvar=False,  # train that logarithm too; False leaves it where it starts
    real_reconstruction=True,  # compare pixels
    latent_reconstruction=False,  # StackedVAE: compare the latents of the image part
    image_identity=False,  # StackedVAE: keep the latents of images as they are
)
perceptual = dict(
    type="PerceptualDistance",
    network="vgg",  # "vgg" or "alex" (LPIPS), or "efficientnet" (ten times as fast, larger values)
    weights=None,  # a folder with the published LPIPS for "vgg"; None takes the weights in a package
)
discriminator = None  # or dict(type="PatchDiscriminator", ...): train against it
gan = dict(
    start=0,  # first step with the discriminator
    generator_weight=0.5,  # of the autoencoder's adversarial loss
    discriminator_weight=1.0,  # of both adversarial losses
    loss="hinge",  # of the discriminator: "hinge" or "vanilla" ("non-saturating" is the same as that)
    generator_loss="hinge",  # of the autoencoder: "hinge" or "non-saturating"
    adaptive=True,  # weigh the generator's loss so that its gradient is as large as the reconstruction's
)
mixed_frames = dict(
    strategy=None,  # None, "image" (some batches keep their first frame only) or "random" (a random length)
    image_ratio=0.0,  # for "image": share of such batches
)
frozen = ()  # starts of the names of parameters of the vae that are not trained, such as ("spatial_vae.",)
