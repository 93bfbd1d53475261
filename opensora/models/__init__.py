"""Registered networks. Three contracts live here.

Letters: `B` batch, `C` channels, `T H W` frames, height and width of the grid at hand, `D` width, `L` text
tokens, `Z` latent channels. Videos are `[B, 3, T, H, W]`, float, in [-1, 1].

**Denoiser.** `forward(x [B,C,T,H,W], t [B], cond, drop, known [B,T] or None) -> [B,C_out,T,H,W]`, float32.
`t` is in [0, 1], 0 is data and 1 is noise. `cond` holds the prepared inputs of the conditions, `drop` says by
condition name which samples do without it, `known` marks frames that are given: they count as `t = 0`.
`C_out` is `C`, or `2C` for a network with a learned variance, of which flow schedulers read the first `C`.
Attribute `conditions: ModuleDict`. With `takes_cache = True` there is one more argument, `cache`: in sampling
a `BranchCache`, in which the network keeps what calls with the same `cond` and `drop` share.

**Autoencoder.** `encode(video, draws=None) -> z`, normalised with `latent_mean` and `latent_std`; the mean of
the posterior, or a sample of it with `draws`. `decode(z, num_frames) -> video`; `decode_stream` with the same
arguments yields it in parts that follow each other in time, so that memory need not grow with length.
`posterior(video) -> Posterior` and `normalize(z)`, `denormalize(z)`. `latent_shape(num_frames, height, width)
-> (T, H, W)`, true for every size that `encode` accepts. `legal_length(num_frames)`: the largest length not
above it that `decode` gives back. `forward(video, draws) -> Reconstruction`. Attributes `latent_channels`,
`stride` (frames, rows, columns), `last_layer`, the weight that makes the output. One that is causal as a
whole has `streams = True`; then `encode_stream` and `decode_stream` also take a video that comes in parts.
One with a codebook has no `posterior`; its codebook's `after_step(skipped)` follows each training step.

**Text encoder.** `encode(list[str]) -> features [B,L,F], mask [B,L]`; attributes `width` (F), `max_length`;
`release()` frees the weights, the next `encode` loads them again.

A class may carry `renames`, pairs of (published prefix, our prefix): published weights load through them.
"""
