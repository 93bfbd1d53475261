"""torch.compile for the blocks of a network, with every size dynamic, and a count of compilations."""

from torch import nn

from opensora.utils.logging import get_logger


def compile_blocks(model: nn.Module) -> int:
    """Compile each module whose class says `compile_alone`; all of one class share what is compiled.

    Sizes are dynamic, so that latents of another size need no other code; sizes of 1 have code of their own.
    Methods that a class lists in `eager_methods` run uncompiled: what they do depends on the grid.

    Returns:
        The number of compiled blocks.

    Raises:
        ValueError: The model has no such block.
    """
    import torch
    import torch._dynamo
    from torch.fx.experimental import _config

    _config.use_duck_shape = False  # two sizes that are equal once need not be equal the next time
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    count = 0
    for module in model.modules():
        for name in getattr(module, "eager_methods", ()):
            setattr(module, name, torch.compiler.disable(getattr(module, name)))
        if getattr(module, "compile_alone", False):
            module.compile(dynamic=True)
            count += 1
    if not count:
        raise ValueError(f"compile=True: {type(model).__name__} has no blocks to compile; set it to False.")
    get_logger().info("%d blocks will be compiled when they first run", count)
    return count


def compilations() -> int:
    """Return how many graphs this process has compiled."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
