"""Registered conditions: what a video is generated from, each in one file.

**Condition.** `prepare(batch, z, draws) -> dict[str, Tensor]`: inputs for the network, without parameters and
gradients; called once per batch, not once per step. `forward(cond, drop) -> Injection`: `cond` holds the
prepared inputs of all conditions and the sizes `height`, `width`, `num_frames`, `fps` [B]; `drop` [B] bool
marks samples that do without this condition, or is None. A condition owns its null embedding. Its constructor
may ask for `hidden_size`, `patch_size`, `in_channels` (the network fills them in), `text_width` and
`text_length` (filled in from the text encoder).

No network knows a condition by name, so a new one works with all of them.
"""
