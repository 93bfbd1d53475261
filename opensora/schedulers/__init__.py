"""Registered schedulers: how noise is added in training and taken away in sampling.

**Time.** `t` in [0, 1]: 0 is data, 1 is noise. `x_t = (1 - t) x_0 + t noise`. The network predicts
`v = x_0 - noise`; a step from `t` to `t'` is `z + v (t - t')`. Networks embed `1000 t`.

**Scheduler.** `training_loss(model, x0, cond, *, frame_mask, drop, draws) -> [B]` and
`sample(model, noise, cond, guidance, *, known, frame_mask, draws) -> z`. `cond` holds the sizes `height`,
`width` and `num_frames` [B] in pixels and frames, on the CPU.

**Frame mask.** `draw(z, draws) -> [B, T]`. Value `m`: the frame is noised at `t` when `m >= t`, else it stays
at 0. Training uses 0 and 1; editing uses values between.
"""
