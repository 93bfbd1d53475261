"""Encode and decode a folder of videos, and measure the loss."""

seed = 42  # names the noise of the posterior
dtype = "bf16"  # of the vae: "bf16", "fp16" or "fp32"
num_samples = None  # clips to take; None is all
save_dir = None  # start of the folder names: save_dir_ori and save_dir_rec; None saves nothing
fps = 24  # frames per second of the clips
frame_interval = 1  # frames of that rate per saved frame
cal_stats = False  # print mean and deviation of the latents
log_stats_every = 100  # clips between these lines
