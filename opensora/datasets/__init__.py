"""Registered datasets, and the keys of a batch.

A dataset has `__getitem__(ClipIndex)`, `sizes()`, and if it likes `check()`, which looks at some of its files
before a run starts and raises an error that says what to change.

| key | type | from |
|---|---|---|
| `video` | float `[B,3,T,H,W]` in [-1, 1] | dataset, or reference files at inference |
| `text` / `label` | list of str / int `[B]` | table column `text` / `label` |
| `fps`, `num_frames`, `height`, `width` | float32 `[B]`, on the CPU | table and bucket |
| `sample`, `epoch` | int64 `[B]`, on the CPU | row and epoch; they name the sample's random numbers |
| `images`, `image_text` | float `[B,3,n,H,W]` in [-1, 1], `[B][n]` str | table, with `num_images=n` |
| `latents` | float `[B,Z,T,H,W]` | `encode`, or a feature file |
| `moments` | float `[B,2,Z,T,H,W]`: mean, log variance | a feature file; `encode` makes `latents` of it |
| `text_features`, `text_mask` | `[B,L,F]`, `[B,L]` | `encode`, or a feature file |
| `reference`, `reference_mask` | `[B,Z,T,H,W]`, `[B,T]` | inference, long-video loops |

With `num_images=n`, a clip of `T` frames has `n` independent images behind it, `T+n` frames in all. They
have the clip's size, and captions of their own.
"""
