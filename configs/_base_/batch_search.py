"""Search for the largest batch of each bucket. These keys are added to any config of training."""

base = (
    None  # (resolution, frames) whose step time the others should match; None looks for what fits in memory
)
base_step_time = None  # seconds per step to match; None measures base
memory_gib = None  # most memory of the process in GiB; None is all of the GPU, a CPU needs a number
largest_batch = 1024  # where the search ends if nothing else ends it
search_warmup = 2  # steps before those that are timed
search_steps = 5  # steps that are timed; their median counts
