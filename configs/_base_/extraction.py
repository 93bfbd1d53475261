"""Writing latents and text features to files."""

seed = 42  # names the random crops and the noise of the posterior
dtype = "bf16"  # of vae, text encoder and features
attention_backend = "auto"  # "auto", "math", "sdpa" or "flash"
save_dir = "samples/features"  # folder of the features
bin_size = 250  # batches per file
start_index = 0  # first file
end_index = None  # file to stop before; None is the last
save_text_features = True  # store text features beside the latents
save_compressed_text_features = False  # store them as the model projects them; then train with projected=True
