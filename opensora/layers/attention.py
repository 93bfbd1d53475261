"""The one attention function, and the self and cross attention built on it."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from opensora.layers.fused import norm_and_turn, reorder
from opensora.layers.host_attention import host_attention, is_faster
from opensora.layers.rope import RotaryTable, apply_rotary
from opensora.layers.sequence import LocalPlan
from opensora.layers.transformer import RMSNorm
from opensora.layers.windows import WindowPlan

BACKENDS = ("auto", "math", "sdpa", "cudnn", "flash")
_CUDNN_FIRST = [
    *(SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION),
    *(SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
]


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, backend: str = "auto"
) -> Tensor:
    """Compute `softmax(q k^T / sqrt(d)) v`.

    Args:
        q: Shape [B, heads, N, d].
        k: Shape [B, heads, M, d].
        v: Shape [B, heads, M, d].
        mask: Keys that may be seen, True = seen. Broadcasts to [B, heads, N, M].
        causal: Whether query i sees keys 0..i only.
        backend: "math" is the explicit product in float32 softmax, "sdpa" torch's kernels, "cudnn" the same
            with cuDNN's first where it takes these tensors (GPUs of 2022 and later, half precision), "flash"
            the flash-attn package. "auto" takes flash where it applies (installed, CUDA, half
            precision, no mask, above 128 tokens, heads of at most 256 channels), on CPUs the explicit product
            where that is faster (see `host_attention`; it rounds scores to bfloat16, sdpa does not), else
            sdpa.

    Returns:
        Shape [B, heads, N, d].

    Raises:
        ValueError: The backend is unknown, or "flash" cannot take these tensors.
        ImportError: "flash" is asked for and flash-attn is not installed.

    Source: Vaswani et al. 2017, equation 1.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention_backend={backend!r}: use one of {', '.join(BACKENDS)}.")
    fits = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and mask is None and q.shape[-1] <= 256
    if backend == "flash" and not fits:
        raise ValueError(
            f"attention_backend='flash' needs CUDA, half precision, no mask and heads of at most 256 "
            f"channels; got "
            f"{q.device.type}, {q.dtype}, mask={mask is not None}, {q.shape[-1]}. Use 'auto' to fall back "
            f"where needed."
        )
    if not q.numel():  # nothing to do, but all processes of a sequence group need one graph
        return q + (k.sum() + v.sum())
    if backend == "flash" or (backend == "auto" and fits and k.shape[2] > 128 and _flash() is not None):
        return _flash_attention(q, k, v, causal)
    if backend == "math":
        return _explicit_attention(q, k, v, mask, causal)
    if backend == "auto" and is_faster(q, k, mask, causal):
        return host_attention(q, k, v)
    if backend == "cudnn":
        with sdpa_kernel(_CUDNN_FIRST, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def set_attention_backend(model: nn.Module, backend: str) -> None:
    """Choose the kernel of every attention in a model.

    Raises:
        ValueError: The backend is unknown.
        ImportError: "flash" is asked for and flash-attn is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention_backend={backend!r}: use one of {', '.join(BACKENDS)}.")
    if backend == "flash" and _flash() is None:
        raise ImportError(_NO_FLASH)
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.backend = backend


class SelfAttention(nn.Module):
    """Self attention within the windows of a grid.

    Args:
        dim: Model width D.
        num_heads: Heads; they divide `dim`.
        qkv_bias: Whether q, k and v have biases.
        qk_norm: Whether q and k are normalised per head (RMSNorm).
        norm_before_rope: False rotates before it normalises, as old weights expect.
    """

    eager_methods = ("to_windows", "attend")  # in compiled blocks: they depend on the grid

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        norm_before_rope: bool = True,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"hidden size {dim} and num_heads={num_heads}: the heads must divide the width.")
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.norm_before_rope = norm_before_rope
        self.backend = "auto"
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        plan: WindowPlan | LocalPlan,
        rope: RotaryTable | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Let each token see the tokens of its window.

        Args:
            x: Tokens in (T, H, W) order, or those of this process in the order of its layout. Shape
                [B, N, D].
            plan: How the grid is cut into windows.
            rope: The rotary table of these tokens, in the order of `windows.token_order`, or None.
            causal: Whether a token sees itself and earlier ones of its window only.

        Returns:
            Shape [B, N, D].
        """
        x = self.to_windows(x, plan)
        q, k, v = self._heads(self.qkv(x).unflatten(-1, (3, self.num_heads, -1)), rope)
        return self.to_windows(self.proj(self.attend(q, k, v, plan, causal).flatten(2)), plan, back=True)

    def to_windows(self, x: Tensor, plan: WindowPlan | LocalPlan, back: bool = False) -> Tensor:
        """Let the tokens of each window follow each other, or put them back. Shape [B, N, D]."""
        order = plan.order(x.device)
        if order is None:
            return x
        return reorder(x, *(reversed(order) if back else order))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, plan: WindowPlan | LocalPlan, causal: bool = False
    ) -> Tensor:
        """Attend within windows that follow each other. Shapes [B, N, heads, d]."""
        if plan.tokens is None:
            return self._attend_here(q, k, v, plan, causal)
        q, k, v = plan.to_heads(torch.stack((q, k, v), 2)).unbind(2)
        return plan.to_tokens(self._attend_here(q, k, v, plan, causal), self.num_heads)

    def _attend_here(
        self, q: Tensor, k: Tensor, v: Tensor, plan: WindowPlan | LocalPlan, causal: bool
    ) -> Tensor:
        outs, start = [], 0
        for num_windows, num_tokens in plan.runs:
            stop = start + num_windows * num_tokens
            shape = (q.shape[0] * num_windows, num_tokens, *q.shape[2:])
            parts = (t[:, start:stop].reshape(shape) for t in (q, k, v))
            heads = (part.transpose(1, 2) for part in parts)  # [B windows, heads, tokens, d]
            out = attention(*heads, causal=causal, backend=self.backend)
            outs.append(out.transpose(1, 2).reshape(q.shape[0], stop - start, *q.shape[2:]))
            start = stop
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)

    def _heads(self, qkv: Tensor, rope: RotaryTable | None) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise and turn q and k. Shape [B, N, 3, heads, d] to three of [B, N, heads, d]."""
        norms = isinstance(self.q_norm, RMSNorm)
        whole = rope is None or (rope.phases is not None and 2 * rope.phases.shape[-1] == qkv.shape[-1])
        lean = whole and (self.norm_before_rope or rope is None or not norms)
        if lean and not torch.compiler.is_compiling():
            weight = torch.stack((self.q_norm.weight, self.k_norm.weight))[:, None] if norms else None
            return norm_and_turn(qkv, weight, None if rope is None else rope.phases)
        q, k, v = qkv.unbind(2)
        return self._position(q, self.q_norm, rope), self._position(k, self.k_norm, rope), v

    def _position(self, x: Tensor, norm: nn.Module, table: RotaryTable | None) -> Tensor:
        if table is None:
            return norm(x)
        turn = lambda h: apply_rotary(h.transpose(1, 2), table).transpose(1, 2)  # noqa: E731
        return turn(norm(x)) if self.norm_before_rope else norm(turn(x))


class CrossAttention(nn.Module):
    """Attention of video tokens to a context, without positions.

    Args:
        dim: Model width D.
        num_heads: Heads; they divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"hidden size {dim} and num_heads={num_heads}: the heads must divide the width.")
        self.num_heads = num_heads
        self.backend = "auto"
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        null_context: Tensor | None = None,
        null_frames: Tensor | None = None,
        keys: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Let each token see the context of its sample, or the null context if its frame is marked.

        Args:
            x: Shape [B, T, S, D].
            context: Shape [B, L, D].
            mask: Real tokens of the context, of both contexts alike. Bool, shape [B, L]; None when all are
                real.
            null_context: Shape [B, L, D].
            null_frames: Frames that see `null_context`. Bool, shape [B, T].
            keys: What `keys` returned for these contexts; None computes them.

        Returns:
            Shape [B, T, S, D].
        """
        frames = x.shape[1]
        q = self.q_linear(x)
        k, v = self.keys(context, null_context, null_frames) if keys is None else keys
        if null_frames is None:
            q = rearrange(q, "B T S (heads d) -> B heads (T S) d", heads=self.num_heads)
            keys = None if mask is None else mask[:, None, None]
            out = rearrange(attention(q, k, v, keys, backend=self.backend), "B heads N d -> B N (heads d)")
            return self.proj(out).view_as(x)
        # Each frame is a row of the batch and picks its own keys: the prompt's, or the null caption's.
        samples = torch.arange(x.shape[0], device=x.device)[:, None]
        pick = (samples + x.shape[0] * null_frames).flatten()  # [B T]
        keys = None if mask is None else mask.repeat_interleave(frames, 0)[:, None, None]
        q = rearrange(q, "B T S (heads d) -> (B T) heads S d", heads=self.num_heads)
        out = attention(q, k[pick], v[pick], keys, backend=self.backend)
        return self.proj(rearrange(out, "(B T) heads S d -> B T S (heads d)", B=x.shape[0]))

    def keys(
        self, context: Tensor, null_context: Tensor | None = None, null_frames: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of the contexts that `forward` sees. Shape [B or 2 B, heads, L, d]."""
        kv = self.kv_linear(context if null_frames is None else torch.cat((context, null_context)))
        return rearrange(kv, "B L (two heads d) -> two B heads L d", two=2, heads=self.num_heads).unbind(0)


def _explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.float().softmax(-1).to(v.dtype) @ v


_NO_FLASH = (
    "attention_backend='flash': the package flash-attn is not installed; install it, or use 'auto' or 'sdpa'."
)


@lru_cache(maxsize=1)
def _flash():  # noqa: ANN202
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None
    return flash_attn_func


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    kernel = _flash()
    if kernel is None:
        raise ImportError(_NO_FLASH)
    out = kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=causal)
    return out.transpose(1, 2)
