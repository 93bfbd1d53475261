"""STDiT3, the denoiser of Open-Sora 1.2 and 1.3: spatial and temporal blocks with text cross attention."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opensora.acceleration.activation_checkpoint import checkpointed
from opensora.acceleration.parallel import parallel_state
from opensora.layers.attention import CrossAttention, SelfAttention
from opensora.layers.embeddings import PatchEmbed3D, TimestepEmbedder, position_embedding_2d, unpatchify
from opensora.layers.fused import gated_sum, modulated_norm
from opensora.layers.interfaces import Injection, inject
from opensora.layers.rope import RotaryEmbedding, RotaryTable, join_tables
from opensora.layers.sampling_cache import BranchCache
from opensora.layers.sequence import (
    Layout,
    LocalPlan,
    choose_layouts,
    gather,
    localize,
    move,
    own_frames,
    split,
)
from opensora.layers.transformer import FinalLayer, Mlp
from opensora.layers.windows import WindowPlan, plan_windows
from opensora.registry import CONDITIONS, MODELS, build, fill_in, register_preset

FINAL_LAYERS = ("v1.3", "once")
_MOST_SHAPES = 16  # sizes of latents whose tables are kept
_MOST_BYTES = 256 << 20  # of all kept tables, unless one size needs more


@dataclass
class BlockInputs:
    """What all blocks of one forward pass share.

    Args:
        injection: Contexts of the conditions.
        modulation: Per-frame shifts, scales and gates before the blocks' own tables. Shape [B, T or 1, 6, D].
    """

    injection: Injection
    modulation: Tensor

    def own(self, layout: Layout | None) -> "BlockInputs":
        """Return what belongs to this process's frames."""
        if layout is None or layout.dim != 1:
            return self
        modulation = self.modulation
        null_frames = own_frames(self.injection.null_frames, layout)
        if modulation.shape[1] == sum(layout.sizes):
            modulation = own_frames(modulation, layout)
        return BlockInputs(replace(self.injection, null_frames=null_frames), modulation)


@dataclass
class Geometry:
    """How one kind of block attends.

    Args:
        plan: The windows of the grid, or of this process's tokens.
        rope: The rotary table of these tokens.
        layout: Which tokens each process of a sequence group holds; None when there is no such group.
    """

    plan: WindowPlan | LocalPlan
    rope: RotaryTable | None
    layout: Layout | None = None


@dataclass
class Shape:
    """What depends on the size of the latents alone, made once per size.

    Args:
        positions: Position embedding. Shape [1, 1, S, D].
        spatial: Of spatial blocks.
        temporal: Of temporal blocks, which take turns.
    """

    positions: Tensor
    spatial: Geometry
    temporal: list[Geometry]

    @property
    def num_bytes(self) -> int:
        """Memory of the tables."""
        ropes = [geometry.rope for geometry in (self.spatial, *self.temporal) if geometry.rope is not None]
        return self.positions.nbytes + sum(rope.cos.nbytes + rope.sin.nbytes for rope in ropes)


class STDiT3Block(nn.Module):
    """Self attention in windows, cross attention to the caption, MLP; modulated per frame.

    Args:
        hidden_size: Width D.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLP over D.
        qk_norm: Whether q and k are normalised.
    """

    compile_alone = True
    called_beside_forward = ("text_keys",)  # where weights are in pieces, these need them whole too

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, qk_norm: bool) -> None:
        super().__init__()
        self.attn = SelfAttention(hidden_size, num_heads, qk_norm=qk_norm)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio))
        self.scale_shift_table = nn.Parameter(torch.empty(6, hidden_size))
        nn.init.normal_(self.scale_shift_table, std=hidden_size**-0.5)

    def forward(
        self,
        x: Tensor,
        inputs: BlockInputs,
        geometry: Geometry,
        keys: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Update the tokens, where they lie if no gradients are kept; `keys` as `CrossAttention` takes them.

        Shape [B, T, S, D] in and out.
        """
        table = (self.scale_shift_table + inputs.modulation)[:, :, :, None]  # [B, T or 1, 6, 1, D]
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = table.unbind(2)
        h = modulated_norm(x, shift_attn, scale_attn).flatten(1, 2)
        h = self.attn(h, geometry.plan, geometry.rope).view_as(x)
        x = gated_sum(x, h, gate_attn)
        context = inputs.injection
        if context.context is not None:
            null = context.null_context if context.null_frames is not None else None
            tokens = context.context, context.context_mask, null, context.null_frames
            x = gated_sum(x, self.cross_attn(x, *tokens, keys))
        h = self.mlp(modulated_norm(x, shift_mlp, scale_mlp))
        return gated_sum(x, h, gate_mlp)

    def text_keys(self, injection: Injection) -> tuple[Tensor, Tensor] | None:
        """Return keys and values of the contexts, which do not depend on the tokens."""
        if injection.context is None:
            return None
        return self.cross_attn.keys(injection.context, injection.null_context, injection.null_frames)


@MODELS.register_module()
class STDiT3(nn.Module):
    """Spatial-temporal diffusion transformer, forms v1.2 and v1.3.

    Spatial blocks see one frame. Temporal blocks see one position in all frames, or with `window_size` a
    window of the grid. Time is per frame: a known frame counts as time 0.

    Args:
        conditions: Condition configs by name; captions, sizes and reference frames in published models.
        in_channels: Latent channels C; filled in from the autoencoder.
        hidden_size: Width D, divisible by 4.
        depth: Number of spatial blocks, and of temporal ones.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLPs over D.
        patch_size: Frames, rows and columns of a patch.
        pred_sigma: Whether there are 2 C output channels; flow schedulers read the first C.
        qk_norm: Whether q and k are normalised per head.
        window_size: Frames, rows and columns of temporal blocks' windows, -1 for the whole axis; None lets
            them see one position in all frames.
        shift_window: Whether every second temporal block moves its windows by half. Off in released weights.
        spatial_rope: Whether spatial blocks use rotary embedding too; needs `window_size`.
        skip_temporal: Leave the temporal blocks out (image adaptation).
        input_sq_size: Side in pixels at which positions have scale 1.
        final_layer: "v1.3" modulates known frames twice, as released weights expect; "once" does not.
        compat_bf16: In bfloat16, round positions and angles as the published code did.
        round_timestep: Round the time to the dtype of the weights, as v1.2 did.
        freeze: Prefixes of parameter names that are not trained.
        train_only: Prefixes of the only parameter names that are trained; empty trains all.

    Source: Open-Sora 1.2 and 1.3 reports; Peebles and Xie 2023 (DiT); Chen et al. 2023 (PixArt,
    adaLN-single).
    """

    takes_cache = True  # `forward` reads a `BranchCache`
    sequence_parallel = "auto"  # see `set_sequence_parallel`
    renames = (
        ("y_embedder.", "conditions.text."),
        ("fps_embedder.", "conditions.size.embedders.fps."),
        ("x_embedder_cond.", "conditions.frames.reference_embedder."),
        ("x_embedder_cond_mask.", "conditions.frames.mask_embedder."),
    )

    def __init__(
        self,
        conditions: Mapping[str, Any],
        in_channels: int,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        pred_sigma: bool = True,
        qk_norm: bool = True,
        window_size: tuple[int, int, int] | None = None,
        shift_window: bool = False,
        spatial_rope: bool = False,
        skip_temporal: bool = False,
        input_sq_size: int = 512,
        final_layer: str = "v1.3",
        compat_bf16: bool = False,
        round_timestep: bool = False,
        freeze: Sequence[str] = (),
        train_only: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if final_layer not in FINAL_LAYERS:
            raise ValueError(f"final_layer={final_layer!r}: use one of {', '.join(FINAL_LAYERS)}.")
        if window_size is None and (spatial_rope or shift_window):
            raise ValueError(
                "spatial_rope and shift_window need window_size, for example (-1, 8, 8); it is None."
            )
        self.patch_size, self.window_size = (
            tuple(patch_size),
            None if window_size is None else tuple(window_size),
        )
        self.num_heads, self.input_sq_size = num_heads, input_sq_size
        self.shift_window, self.spatial_rope, self.skip_temporal = shift_window, spatial_rope, skip_temporal
        self.compat_bf16, self.round_timestep = compat_bf16, round_timestep

        # Of one dtype, device and set of frequencies, which come first; then by grid and scale, oldest first.
        self._shapes: tuple[tuple[Any, ...], dict[tuple[Any, ...], Shape]] = ((), {})

        head_dim = hidden_size // num_heads
        self.rope = RotaryEmbedding(head_dim if window_size is None else head_dim // 3)
        self.x_embedder = PatchEmbed3D(self.patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.spatial_blocks = nn.ModuleList(
            STDiT3Block(hidden_size, num_heads, mlp_ratio, qk_norm) for _ in range(depth)
        )
        self.temporal_blocks = nn.ModuleList(
            STDiT3Block(hidden_size, num_heads, mlp_ratio, qk_norm)
            for _ in range(0 if skip_temporal else depth)
        )
        channels = in_channels * (2 if pred_sigma else 1)
        self.final_layer = FinalLayer(
            hidden_size, math.prod(self.patch_size), channels, twice=final_layer == "v1.3"
        )
        self.reset_parameters()
        facts = {"hidden_size": hidden_size, "patch_size": self.patch_size, "in_channels": in_channels}
        self.conditions = nn.ModuleDict()
        for name, cfg in conditions.items():
            self.conditions[name] = build(CONDITIONS, fill_in(CONDITIONS, cfg, **facts))
        self._choose_trained(freeze, train_only)

    def reset_parameters(self) -> None:
        """Initialise linear layers; temporal blocks start without effect.

        Patch embeddings keep torch's default.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.temporal_blocks:
            for last in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2):
                nn.init.zeros_(last.weight)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        drop: Mapping[str, Tensor] | None = None,
        known: Tensor | None = None,
        cache: BranchCache | None = None,
    ) -> Tensor:
        """Predict the velocity.

        Args:
            x: Noisy latents; any size. Shape [B, C, T, H, W].
            t: Time in [0, 1], 1 is noise. Shape [B].
            cond: Inputs of the conditions, and `height` and `width` in pixels [B]: the first sample's size
                sets the scale of positions for the whole batch. Kept on the CPU they cost no synchronisation.
            drop: By condition name, samples that do without it. Bool, shape [B].
            known: Frames that are given; they are modulated with time 0. Bool, shape [B, T].
            cache: What calls with the same `cond` and `drop` have computed already, in sampling.

        Returns:
            float32, shape [B, C or 2 C, T, H, W].
        """
        size = tuple(x.shape[2:])
        weight = self.x_embedder.proj.weight
        keep = _compute if cache is None else cache.keep
        injection = keep("injection", lambda: inject(self.conditions, cond, drop or {}))
        grid = tuple(-(-s // p) for s, p in zip(size, self.patch_size, strict=True))
        shape = self._shape(grid, self._scale(cond, weight.dtype), weight)

        h = self.x_embedder(x.to(weight.dtype))
        if injection.channels is not None:
            h = h + injection.channels
        h = h.unflatten(1, (grid[0], -1)) + shape.positions  # [B, T, S, D]
        layout = shape.spatial.layout
        h = split(h, layout)

        if cache is None:
            time, modulation = self._embed_time(t, injection.vector)
        else:  # [steps, rows, ...]: all times of the run in one call
            times = keep("times", lambda: self._embed_times(cache.times, injection.vector))
            time, modulation = (table[cache.step] for table in times)
        time_zero = None
        if known is not None:
            known = self._known_patches(known, grid[0])
            time_zero, zero = keep("zero", lambda: self._embed_time(torch.zeros_like(t), injection.vector))
            modulation = torch.where(known[:, :, None, None], zero, modulation)  # [B, T, 6, D]
        inputs = BlockInputs(injection, modulation)
        for block, geometry in self._blocks(shape):
            h, layout = move(h, layout, geometry.layout), geometry.layout
            keys = None if cache is None else keep(block, partial(block.text_keys, injection))
            h = checkpointed(block, h, inputs.own(layout), geometry, keys)

        h = self.final_layer(h, time, time_zero, own_frames(known, layout))
        return unpatchify(gather(h, layout), self.patch_size, size).float()

    def _blocks(self, shape: Shape) -> Iterator[tuple[STDiT3Block, Geometry]]:
        """Yield the blocks in their order."""
        for i, block in enumerate(self.spatial_blocks):
            yield block, shape.spatial
            if not self.skip_temporal:
                yield self.temporal_blocks[i], shape.temporal[i % len(shape.temporal)]

    def _scale(self, cond: Mapping[str, Tensor], dtype: torch.dtype) -> float:
        sides = torch.stack((cond["height"][0], cond["width"][0])).cpu()
        if self.compat_bf16 and dtype == torch.bfloat16:
            sides = sides.bfloat16()
        height, width = sides.double().tolist()
        return math.sqrt(height * width) / self.input_sq_size

    def _shape(self, grid: tuple[int, int, int], scale: float, weight: Tensor) -> Shape:
        freqs = self.rope.freqs
        version = 0 if freqs.is_inference() else freqs._version
        now = (weight.dtype, weight.device, freqs.data_ptr(), version)
        made_with, shapes = self._shapes
        if made_with != now:
            shapes = {}
            self._shapes = (now, shapes)
        processes = parallel_state()
        mode = self.sequence_parallel if processes.sequence_size > 1 else None
        shape = shapes.get((grid, scale, mode))
        if shape is None:
            with torch.inference_mode(False), torch.no_grad():  # training reads the tables too
                positions = self._positions(grid, scale, weight)[:, None]
                spatial, temporal = self._geometries(grid, scale, weight.dtype)
                if mode is not None:
                    spatial, temporal = self._share_out(spatial, temporal, mode, weight.device)
            shape = Shape(positions, spatial, temporal)
            _keep(shapes, (grid, scale, mode), shape)
        return shape

    def _positions(self, grid: tuple[int, int, int], scale: float, weight: Tensor) -> Tensor:
        size, dim = grid[1:], self.final_layer.scale_shift_table.shape[1]
        compat = self.compat_bf16 and weight.dtype == torch.bfloat16
        base = round(math.sqrt(size[0] * size[1]))
        table = position_embedding_2d(dim, size, scale, base, device=weight.device, compat_bf16=compat)
        return table.to(weight.dtype)

    def _embed_time(self, t: Tensor, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the embedding of times [B] and their modulation. Shapes [B, D] and [B, 1, 6, D]."""
        t = 1000 * t.to(self.x_embedder.proj.weight.device)
        if self.round_timestep:
            t = t.to(self.x_embedder.proj.weight.dtype)
        time = self.t_embedder(t)
        if vector is not None:
            time = time + vector
        return time, self.t_block(time).unflatten(1, (6, -1))[:, None]

    def _embed_times(self, times: Tensor, vector: Tensor | None) -> list[Tensor]:
        """Return what `_embed_time` does for all steps of a run. Shapes [steps, B, ...]."""
        every = None if vector is None else vector.repeat(len(times), 1)
        return [table.unflatten(0, times.shape) for table in self._embed_time(times.flatten(), every)]

    def _known_patches(self, known: Tensor | None, frames: int) -> Tensor | None:
        """A patch of several frames is known when all its frames are. Shape [B, T / patch]."""
        if known is None or self.patch_size[0] == 1:
            return known
        pad = frames * self.patch_size[0] - known.shape[1]
        return nn.functional.pad(known, (0, pad), value=True).unflatten(1, (frames, -1)).all(-1)

    def _geometries(
        self, grid: tuple[int, int, int], scale: float, dtype: torch.dtype
    ) -> tuple[Geometry, list[Geometry]]:
        """Plans and rotary tables of spatial blocks, and of temporal ones in turn."""
        compat = self.compat_bf16 and dtype == torch.bfloat16
        head_dim = self.final_layer.scale_shift_table.shape[1] // self.num_heads

        def axial(plan: WindowPlan) -> Geometry:
            tables = [self.rope.axial_table(group.size, scale, head_dim, compat) for group in plan.groups]
            return Geometry(plan, join_tables(plan, tables))

        frame = plan_windows(grid, (1, -1, -1))
        spatial = axial(frame) if self.spatial_rope else Geometry(frame, None)
        if self.window_size is None:
            plan = plan_windows(grid, (-1, 1, 1))
            return spatial, [Geometry(plan, join_tables(plan, [self.rope.table(grid[0], compat)]))]
        shifts = (False, True) if self.shift_window else (False,)
        return spatial, [axial(plan_windows(grid, self.window_size, shift)) for shift in shifts]

    def _share_out(
        self, spatial: Geometry, temporal: list[Geometry], mode: str, device: torch.device
    ) -> tuple[Geometry, list[Geometry]]:
        """Cut plans and tables to what this process of a sequence group needs."""
        processes = parallel_state()
        kinds = [spatial] if self.skip_temporal else [spatial, *temporal]
        layouts = choose_layouts([kind.plan for kind in kinds], mode, processes.sequence_size, device)
        first, *rest = (
            Geometry(*localize(kind.plan, kind.rope, layout, processes.sequence_rank, device), layout)
            for kind, layout in zip(kinds, layouts, strict=True)
        )
        return first, rest

    def _choose_trained(self, freeze: Sequence[str], train_only: Sequence[str]) -> None:
        names = [name for name, _ in self.named_parameters()]
        for prefix in (*freeze, *train_only):
            if not any(name.startswith(prefix) for name in names):
                raise ValueError(
                    f"freeze/train_only: no parameter starts with {prefix!r}; the first parts of names are "
                    f"{', '.join(sorted({name.split('.')[0] for name in names}))}."
                )
        for name, parameter in self.named_parameters():
            if name.startswith(tuple(freeze)) or (train_only and not name.startswith(tuple(train_only))):
                parameter.requires_grad_(False)


def _compute(name: Any, make: Callable[[], Any]) -> Any:
    """Keep nothing."""
    return make()


def _keep(shapes: dict[tuple[Any, ...], Shape], key: tuple[Any, ...], shape: Shape) -> None:
    """Add tables to those that are kept, and drop the oldest where there are too many."""
    kept, room = list(shapes.items()), _MOST_BYTES - shape.num_bytes
    while kept and (len(kept) >= _MOST_SHAPES or sum(old.num_bytes for _, old in kept) > room):
        shapes.pop(kept.pop(0)[0], None)  # another thread may have been here
    shapes[key] = shape


register_preset(
    MODELS, "STDiT3-XL/2", STDiT3, depth=28, hidden_size=1152, num_heads=16
)  # 1.2 billion parameters
register_preset(
    MODELS, "STDiT3-3B/2", STDiT3, depth=28, hidden_size=1872, num_heads=26
)  # 3.2 billion parameters
