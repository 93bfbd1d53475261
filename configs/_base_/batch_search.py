"""Search for the largest batch of each bucket. An entry of bucket_config is (guess, variance)."""

base = (
    None  # (resolution, frames) whose step time the others should match; None looks for what fits in memory
)
base_step_time = None  # seconds per step to match; None measures base
