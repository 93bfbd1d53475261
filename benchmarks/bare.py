"""Bare products: the matrix products of a network alone, recorded from one call and replayed.

They are a floor that moves with the machine: what a network takes beyond them is norms, copies and overhead.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LINEAR_GELU = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # builds without oneDNN have none
_SUMS = (torch.baddbmm, torch.Tensor.baddbmm, torch.addmm)  # their first tensor is ignored if beta is 0
_PRODUCTS = {
    F.linear: "linear",
    F.scaled_dot_product_attention: "attention",
    torch.matmul: "matmul",
    torch.Tensor.matmul: "matmul",
    torch.Tensor.__matmul__: "matmul",
    torch.bmm: "matmul",
    torch.Tensor.bmm: "matmul",
    torch.mm: "matmul",
    torch.baddbmm: "matmul",
    torch.Tensor.baddbmm: "matmul",
    torch.addmm: "matmul",
    _LINEAR_GELU: "linear",
    F.conv2d: "convolution",
    F.conv3d: "convolution",
}


class BareProducts(TorchFunctionMode):
    """Record every matrix product, attention and convolution that runs inside the `with` block.

    Attributes:
        calls: Function, arguments and keywords of each call, with the real shapes, dtypes and values (random
            ones for tensors without data), on contiguous tensors. Inputs of equal shape share memory, weights
            do not.
        counts: How many of each kind there were.
        strided: How many of their tensors were not contiguous in the network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]] = []
        self.counts: dict[str, int] = {}
        self.strided = 0
        self._inside = False
        self._shared: dict[tuple[Any, ...], Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and keep its call if it is a product."""
        kwargs = kwargs or {}
        kind = None if self._inside else _PRODUCTS.get(func)
        if kind is not None:
            call, inputs = (F.linear, args[:3]) if func is _LINEAR_GELU else (func, args)
            ignored = inputs[:1] if func in _SUMS and kwargs.get("beta") == 0 else ()
            self._inside = True  # copying calls torch functions too
            try:
                values = tuple(enumerate((*inputs, *kwargs.values())))[len(ignored) :]
                copied = [x.detach() for x in ignored] + [self._copy(x, place) for place, x in values]
            finally:
                self._inside = False
            names = dict(zip(kwargs, copied[len(inputs) :], strict=True))
            self.calls.append((call, tuple(copied[: len(inputs)]), names))
            self.counts[kind] = self.counts.get(kind, 0) + 1
        return func(*args, **kwargs)

    def forward(self) -> list[Tensor]:
        """Run all calls, each from its own inputs."""
        return [func(*args, **kwargs) for func, args, kwargs in self.calls]

    @torch.no_grad()
    def replay(self) -> None:
        """Run the calls one after the other; their results are dropped."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)

    def replay_with_gradients(self) -> None:
        """Run the calls, then their backward passes in reverse order, to all inputs that are floats."""
        outs = self.forward()
        for out, (_, args, kwargs) in zip(reversed(outs), reversed(self.calls), strict=True):
            inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad]
            torch.autograd.grad(out, inputs, torch.ones_like(out))

    def _copy(self, x: Any, place: int) -> Any:
        if not isinstance(x, Tensor):
            return x
        self.strided += not x.is_contiguous()
        key = (id(x),) if isinstance(x, torch.nn.Parameter) else (x.shape, x.dtype, place)
        if key not in self._shared:
            values = torch.randn(x.shape, dtype=x.dtype) if x.is_meta else x.detach()
            copy = values.clone(memory_format=torch.contiguous_format)
            self._shared[key] = copy.requires_grad_(x.is_floating_point())
        return self._shared[key]
