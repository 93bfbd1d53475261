"""Judging a model of the generated world. These keys are added to any config of inference."""

prompts = 200  # prompts that are asked, from held-out combinations of the world
modes = ("t2v",)  # of "t2v", "i2v" (first frame given), "i2v_loop" (first and last), "extend"; "vae" and
# "real" judge the autoencoder's round trip and true clips instead: the most that can be reached
world = dict(world="small")  # the world that was learned: keys of ShapesDataset, such as dict(world="full")
rounds = 10  # clips that continue each other in "extend"
seeds = 4  # videos of a prompt, for the diversity of "t2v"; 1 leaves it out
diverse_prompts = 10  # prompts of which so many videos are made
neighbours = 2000  # training clips among which the nearest is looked for; 0 leaves it out
lab_dir = None  # folder of the result; None is SAVE_DIR_lab
