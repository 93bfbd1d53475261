"""Writing latents and text features to files. These keys are added to any config of training."""

seed = 42  # names the random crops and the noise of the posterior; that of the training
dtype = "bf16"  # of the vae and its latents; that of the training
device = "auto"  # "auto" takes GPUs where there are some; "cpu" or "cuda" insist
save_dir = "samples/features"  # folder of the features
variants = 1  # epochs that are extracted, each with its own crops of time; training goes through them in turn
shard_mib = 512.0  # largest size of a file in MiB
start_index = 0  # first file of latents, to share the work by hand
end_index = None  # file to stop before; None is the last
save_text_features = True  # store text features beside the latents
save_compressed_text_features = False  # store them as the model projects them; then train with projected=True
