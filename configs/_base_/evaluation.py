"""Loss by resolution, length and time, without training."""

seed = 42  # names the noise
dtype = "bf16"  # of the model: "bf16", "fp16" or "fp32"
attention_backend = "auto"  # "auto", "math", "sdpa", "cudnn" or "flash"
num_eval_timesteps = 10  # times at which the loss is taken, evenly spread in (0, 1)
resolution = None  # evaluate only this one; None is all of bucket_config
start_index = 0  # first resolution, or first length if there is one resolution
end_index = None  # one to stop before; None is the last
save_dir = "outputs/evaluation"  # folder of the result
