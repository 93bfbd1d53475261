"""Steps of a transformer block that keep little for the backward pass and pass over memory few times.

Each is exact: the same formula as the plain operations, in the same or a higher precision. Inside a compiled
block the plain operations run instead, because the compiler fuses them itself.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NORM_EPS = 1e-6
_GELU = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715
_ROWS = 1024  # tokens of an MLP handled at once
_CHUNK = 1 << 19  # numbers handled at once, so that the steps of a formula find them in the cache
_DEVICE_CHUNK = 1 << 26  # the same on a GPU, where many small kernels cost more: 256 MiB in float32


def reorder(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Return tokens in another order. The gradient is gathered too, not added up.

    Args:
        x: Shape [B, N, D].
        order: For each new place the old one. Shape [N].
        inverse: For each old place the new one. Shape [N].
    """
    return x[:, order] if torch.compiler.is_compiling() else _Reorder.apply(x, order, inverse)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return `layer_norm(x) (1 + scale) + shift`, keeping only `x` for the backward pass.

    Args:
        x: Shape [B, T, S, D].
        shift: Shape [B, T or 1, 1, D].
        scale: Same shape.

    Source: Peebles and Xie 2023, "DiT", section 3.2 (adaLN).
    """
    width, scale = x.shape[-1], 1 + scale
    if torch.compiler.is_compiling() or x.dtype != scale.dtype:
        return torch.addcmul(shift, F.layer_norm(x, (width,), eps=NORM_EPS), scale)
    if scale.numel() == width:  # one modulation for all tokens is the weight and bias of the norm
        with _own_precision(x):
            return F.layer_norm(x, (width,), scale.flatten(), shift.flatten(), NORM_EPS)
    return _ModulatedNorm.apply(x, shift, scale)


def norm_and_turn(qkv: Tensor, weight: Tensor | None, phases: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise q and k per head (RMSNorm) and turn them (rotary embedding), in float32.

    Args:
        qkv: Shape [B, N, 3, heads, d]. Where no gradients are kept, the result takes its place.
        weight: Weights of the norms of q and k; None does not normalise. Shape [2, 1, d].
        phases: `exp(i angle)` of each token and pair of channels; None does not turn. complex64, shape
            [N, d / 2].

    Returns:
        q, k and v in the dtype of `qkv`. Shapes [B, N, heads, d].

    Source: Zhang and Sennrich 2019, equation 4; Su et al. 2021, section 3.4.2.
    """
    if torch.is_grad_enabled():
        return _NormAndTurn.apply(qkv, weight, phases)
    rows = _rows(qkv)
    for start in _starts(qkv):
        part, turn = qkv[:, start : start + rows, :2], phases
        if turn is not None:
            turn = turn[start : start + rows]
        new, _ = _norm_and_turn(part, weight, turn, own=True)
        if new.data_ptr() != part.data_ptr():  # float32 was changed where it lies
            part.copy_(new)
    return qkv.unbind(2)


def _rows(qkv: Tensor) -> int:
    """Return how many tokens are handled at once."""
    chunk = _CHUNK if qkv.device.type == "cpu" else _DEVICE_CHUNK
    return max(1, chunk // max(1, qkv.shape[0] * qkv.shape[3] * qkv.shape[4]))


def _starts(qkv: Tensor) -> range:
    return range(0, qkv.shape[1], _rows(qkv))


def mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """Return `fc2(gelu(fc1(x)))` with the tanh form of GELU; of the width between, one tensor is kept."""
    plain = type(fc1) is nn.Linear and type(fc2) is nn.Linear and fc1.weight.dtype == x.dtype
    lean = plain and x.device.type == "cpu" and not torch.compiler.is_compiling()
    if not lean or torch.is_autocast_enabled("cpu"):
        return fc2(F.gelu(fc1(x), approximate="tanh"))
    if torch.is_grad_enabled():
        return _GeluLinear.apply(fc1(x), fc2.weight, fc2.bias)
    # Some tokens at a time: the width between is never whole, and stays in memory that is warm.
    parts = [fc2(_linear_gelu(part, fc1)) for part in x.flatten(0, -2).split(_ROWS)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unflatten(0, x.shape[:-1])


def gated_sum(x: Tensor, h: Tensor, gate: Tensor | None = None) -> Tensor:
    """Return `x + gate h`, in the memory of `x` where no gradients are kept. Shapes [B, T, S, D]."""
    own = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    if gate is None:
        return x.add_(h) if own and x.dtype == h.dtype else x + h
    return x.addcmul_(gate, h) if own and x.dtype == h.dtype == gate.dtype else torch.addcmul(x, gate, h)


def _linear_gelu(x: Tensor, fc1: nn.Linear) -> Tensor:
    if type(fc1.weight) is nn.Parameter and _has_linear_gelu(x.dtype):  # no quantised or sharded tensor
        return torch.ops.mkldnn._linear_pointwise(x, fc1.weight, fc1.bias, "gelu", [], "tanh")
    return _gelu_(fc1(x))


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return _gather(x, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gather(grad, ctx.inverse), None, None


def _gather(x: Tensor, order: Tensor) -> Tensor:
    if x.shape[0] == 1:
        return x[0].index_select(0, order)[None]
    rows = order + order.shape[0] * torch.arange(x.shape[0], device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(x.shape)


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        with _own_precision(x):
            h, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], None, None, NORM_EPS)
        ctx.save_for_backward(x, mean, rstd, scale)
        return torch.addcmul(shift, h, scale, out=h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, mean, rstd, scale = ctx.saved_tensors
        normed = ((x - mean).mul_(rstd)).to(grad.dtype)
        to_scale = (grad * normed).sum_to_size(scale.shape)
        del normed
        to_x = torch.ops.aten.native_layer_norm_backward(
            grad * scale, x, [x.shape[-1]], mean, rstd, None, None, [True, False, False]
        )[0]
        return to_x, grad.sum_to_size(scale.shape), to_scale


def _own_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Keep autocast from widening norms to float32, as it does on GPUs: kernels compute in float32 anyway."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


class _NormAndTurn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, weight: Tensor | None, phases: Tensor | None) -> tuple[Tensor, ...]:
        h, inverse = _norm_and_turn(qkv[:, :, :2], weight, phases)
        h = h.to(qkv.dtype)
        ctx.save_for_backward(qkv, weight, phases, inverse)
        return h[:, :, 0], h[:, :, 1], qkv[:, :, 2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, weight, phases, inverse = ctx.saved_tensors
        out, to_weight = torch.empty_like(qkv), None if weight is None else torch.zeros_like(weight).float()
        out[:, :, 2] = grads[2]
        for start in _starts(qkv):
            part = slice(start, start + _rows(qkv))
            turned = None if phases is None else phases[part, None].conj()
            for i in range(2):
                g = grads[i][:, part].float()
                if turned is not None:
                    g = _turn(g.contiguous(), turned, own=False)
                if weight is not None:
                    scale = inverse[:, part, i]
                    normed = qkv[:, part, i] * scale
                    product = g * normed
                    to_weight[i] += product.sum((0, 1, 2))
                    mean = product.mul_(weight[i].float()).mean(-1, keepdim=True)
                    g = (g * weight[i]).addcmul_(normed, mean, value=-1).mul_(scale)
                out[:, part, i] = g
        to_weight = None if to_weight is None else to_weight.to(weight.dtype)
        return out, to_weight, None


def _norm_and_turn(
    qk: Tensor, weight: Tensor | None, phases: Tensor | None, own: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the new q and k, shape [B, N, 2, heads, d], and the factors of the norm, [B, N, 2, heads, 1].

    Both are float32. The first is `qk` itself, changed, if that is float32 and our `own`.
    """
    h, inverse, own = qk.float(), None, own or qk.dtype != torch.float32
    if weight is not None:
        inverse = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
        inverse = inverse.square_().div_(h.shape[-1]).add_(NORM_EPS).rsqrt_()
        h, own = (h.mul_(inverse) if own else h * inverse).mul_(weight.float()), True
    if phases is not None:
        h = _turn(h, phases[:, None, None], own)
    return h, inverse


def _turn(x: Tensor, phases: Tensor, own: bool) -> Tensor:
    """Multiply pairs of channels, as complex numbers; in place if `x` is our own."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs.mul_(phases) if own else pairs * phases).flatten(-2)


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        parts = [F.linear(_gelu_(part.clone()), weight, bias) for part in x.flatten(0, -2).split(_ROWS)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        shape, x, grad = x.shape, x.flatten(0, -2), grad.flatten(0, -2)
        to_x, hidden = grad @ weight, torch.empty_like(x)
        for h, y, g in zip(*(_chunks(part) for part in (x, hidden, to_x)), strict=True):
            _gelu_backward(h, y, g)
        to_bias = grad.sum(0) if ctx.has_bias else None
        return to_x.view(shape), grad.t() @ hidden, to_bias


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    return x.split(max(1, _CHUNK // x.shape[-1]))


def _gelu_(x: Tensor) -> Tensor:
    """`x sigmoid(_GELU (x + _CUBIC x^3))`, in place: the tanh form of GELU; torch's takes twice as long."""
    if x.dtype != torch.float32:
        return torch.ops.aten.gelu_(x, approximate="tanh")
    for part in _chunks(x):
        part.mul_(_slope_argument(part, _CUBIC).mul_(part).sigmoid_())
    return x


def _slope_argument(x: Tensor, cubic: float) -> Tensor:
    """`_GELU (1 + cubic x^2)`, in one pass: a third of the time of three."""
    return torch.addcmul(x.new_tensor(_GELU), x, x, value=_GELU * cubic)


def _gelu_backward(x: Tensor, y: Tensor, grad: Tensor) -> None:
    """Write `gelu(x)` into `y`, and multiply `grad` by the derivative at `x`."""
    if x.dtype != torch.float32:
        y.copy_(F.gelu(x, approximate="tanh"))
        grad.copy_(torch.ops.aten.gelu_backward(grad, x, approximate="tanh"))
        return
    s = _slope_argument(x, _CUBIC).mul_(x).sigmoid_()
    torch.mul(x, s, out=y)
    slope = _slope_argument(x, 3 * _CUBIC).mul_(y)
    grad.mul_(slope.addcmul_(slope, s, value=-1).add_(s))  # s + y (1 - s) (c + 3 c' x^2)


def is_bf16_quick() -> bool:
    """Whether this processor multiplies bfloat16 numbers, or at least converts them quickly."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def _has_linear_gelu(dtype: torch.dtype) -> bool:
    """Whether oneDNN has a quick product with GELU at its end, which saves passes over the width between.

    Without AVX-512 its GELU takes as long as the product: 60 ms for both in one, 37 ms one after the other.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    supported = dtype == torch.float32 and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if dtype == torch.bfloat16:
        supported = is_bf16_quick()
    return bool(supported)
