"""Where a run starts: afresh, from weights, or from a checkpoint that is intact."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora.acceleration.parallel import all_equal, barrier, parallel_state
from opensora.engine.checkpoint import (
    RunState,
    find_checkpoint,
    intact_checkpoint,
    list_checkpoints,
    read_state,
    step_of,
)
from opensora.engine.checkpoint_writer import set_aside
from opensora.utils.logging import get_logger


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Args:
        checkpoint: What is loaded; None starts with fresh weights.
        state: Where the run goes on; None at step 0, though weights may be loaded.
    """

    checkpoint: Path | None
    state: RunState | None

    @property
    def step(self) -> int:
        """Steps that are done."""
        return 0 if self.state is None else self.state.step


def find_start(cfg: Any) -> Start:
    """Resolve `load`, `run_name` and `start_from_scratch`, the same on all processes.

    A named run that has checkpoints of its own goes on from the newest, also if `load` names another run:
    that was for its first start. So a command that was stopped can be given again as it is.

    Raises:
        ValueError: The settings contradict each other, or the checkpoint is damaged.
        FileNotFoundError: There is no checkpoint.
        RuntimeError: The processes do not see the same ones.
    """
    named = None if cfg["run_name"] is None else Path(cfg["outputs"]) / cfg["run_name"]
    own = [] if named is None else list_checkpoints(named)
    load = cfg["load"]
    if load == "latest" and named is None:
        raise ValueError(
            "load='latest' needs run_name, the run whose newest checkpoint is loaded; give --run-name."
        )
    path = None if load in (None, "latest") else Path(load)
    newest = None if path is None else find_checkpoint(path)
    if not all_equal(f"{own} {newest}"):
        raise RuntimeError("processes see different checkpoints; put `outputs` on a disk that all share.")
    inside = path is not None and named is not None and named.resolve() in (r := path.resolve(), *r.parents)
    if own and not inside:
        if path is not None:
            get_logger().info(
                "run %s goes on from its own checkpoint; load=%s was for its start", named, load
            )
        found = intact_checkpoint(named, together=True)
        _set_aside_after(found, own)
        return Start(found, read_state(found))
    found = None if path is None else intact_checkpoint(path, together=True)
    start = Start(found, None if found is None or cfg["start_from_scratch"] else read_state(found))
    if own and step_of(own[-1]) > start.step:
        raise ValueError(
            f"{named} has checkpoints up to {own[-1].name}, and this start would go on from step "
            f"{start.step}; give another --run-name."
        )
    return start


def _set_aside_after(found: Path, own: list[Path]) -> None:
    """Rename the damaged checkpoints after the intact one, so that they neither count nor come back."""
    for path in own[own.index(found) + 1 :] if parallel_state().is_main else []:
        get_logger().warning("the damaged checkpoint is kept as %s", set_aside(path))
    barrier()
