"""Rectified flow: how noise is added, how samples are made, and which frames are given."""

scheduler = dict(
    type="RectifiedFlow",
    num_sampling_steps=30,
    num_timesteps=1000,  # resolution of discrete times
    time_distribution="uniform",  # of training times: "uniform" or "logit-normal"
    time_loc=0.0,  # mean of logit-normal
    time_scale=1.0,  # deviation of logit-normal
    discrete_time=False,  # times are multiples of 1 / num_timesteps
    shift_time=False,  # move times towards noise for larger and longer videos
    shift_scale=1.0,  # more (above 1) or less so, for videos
    frame_factor="stride4",  # how length counts: "stride4" (v1.3), "chunk17" (v1.2), "latent" or None (not)
    uniform_over_threshold=None,  # videos: draw training times above this one evenly; in [0, 1]
    reference_weight=1.0,  # of given frames in the loss, if they are a condition
    clean_above=None,  # with noise_augmentation: times above this one start from the clean video; in [0, 1]
    time_weights=None,  # loss weights of equally many times from 0 up, such as 1000 numbers; None is 1
    renoise_reference=False,  # sampling: given frames start each step from the noised reference (SDEdit)
    compat_bf16=False,  # round the shift as the published code did in bf16
    reuse_conditions=True,  # sampling computes keys of captions and embedded times once; takes memory
)
guidance = dict(
    scales=dict(  # by condition, the one that is dropped last first
        frames=dict(scale=5.0, oscillate_from=None, ramp_from=None, interval=None),
        text=dict(
            scale=7.5,  # 1 is no guidance
            oscillate_from=None,  # from this step on, every second step goes without guidance
            ramp_from=None,  # rise over the frames from this scale, and fall to it over the steps
            interval=None,  # (0.15, 1.0): no guidance in the first 15 % of the steps, for truer colours
        ),
    ),
    rescale=0.0,  # pull the deviation of the result to that of the prompted one: 0 not, 1 fully
    dynamic_threshold=None,  # or dict(quantile=0.95, base=6.0): clip outliers of each sample
)
frame_mask = (
    None  # or dict(type="FrameMask", ratios=dict(random=0.2, image_head=0.1)): frames given in training
)
noise_augmentation = (
    None  # or dict(gaussian_pixel=dict(probability=0.5, strength=0.4), ...): see docs/training.md
)
latent_window = None  # or dict(frames=5, given=1, begin=0.5): parts of longer clips, see docs/training.md
sample_posterior = False  # train on samples of what the vae encodes, instead of its mean
