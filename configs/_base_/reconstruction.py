"""Encode and decode clips or images, and measure what came back."""

seed = 42  # nothing here is random: the mean of the posterior is decoded
device = "auto"  # "auto", "cuda" or "cpu"
dtype = "bf16"  # of the vae: "bf16", "fp16" or "fp32"
num_samples = None  # clips to take; None is all
save_dir = None  # start of the folder names: save_dir_ori, save_dir_rec, save_dir_side; None saves nothing
side_by_side = False  # also save original, reconstruction and their difference beside each other
difference_gain = 4.0  # the difference is shown so many times as strong, on grey
fps = 24  # frames per second of the saved clips, before frame_interval
frame_interval = 1  # frames of that rate per saved frame
cal_stats = False  # print mean and deviation of the latents
log_stats_every = 100  # clips between these lines
metrics = ("psnr", "ssim")  # measured by eval.vae: "psnr", "ssim", "lpips", "flolpips"
lpips_network = "alex"  # of lpips and flolpips: "alex" or "vgg"
lpips_weights = None  # a folder with the published LPIPS for "vgg"; None takes the weights in a package
optical_flow = "dis"  # of flolpips: "dis" (OpenCV) or "spynet"
