"""Two processes that talk: `test_parallel.py` starts this with torchrun. Writes OUT/RANK.json."""

import json
import sys
from pathlib import Path

import torch

from opensora.acceleration.parallel import (
    all_equal,
    all_reduce_mean,
    barrier,
    broadcast_text,
    gather_texts,
    init_distributed,
    parallel_state,
)

state = init_distributed("cpu", timeout_s=600)
value = torch.tensor([1, 2]) * (state.rank + 1)
found = {
    "rank": [state.rank, state.local_rank, state.world_size, state.data_rank, state.data_size, state.is_main],
    "known": parallel_state() is state,
    "mean": all_reduce_mean(value).tolist(),
    "untouched": value.tolist(),
    "mean_of_number": float(all_reduce_mean(float(state.rank))),
    "text": broadcast_text('{"name": "größe"}' if state.is_main else None),
    "empty": broadcast_text(""),
    "texts": gather_texts("größe" * state.rank),
    "same": all_equal("plan"),
    "different": all_equal(f"plan of {state.rank}"),
}
barrier()
(Path(sys.argv[1]) / f"{state.rank}.json").write_text(json.dumps(found))
