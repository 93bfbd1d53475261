"""Clips and images from a table, and their loader."""

dataset = dict(
    type="VideoDataset",
    data_path=None,  # table (.csv or .parquet) with path, text, num_frames, height, width
    num_frames=None,  # frames per clip; None with bucket_config
    frame_interval=1,  # take every n-th frame
    image_size=None,  # (height, width) in pixels; None with bucket_config
    transform="resize_crop",  # "resize_crop" fills the size and crops, "center" does so for squares
    probe=False,  # read sizes and lengths from the files where the table lacks them
)
bucket_config = None  # {resolution: {frames: (probability, batch size)}}; None is one size for all
batch_size = None  # clips per batch; None with bucket_config, which has its own
num_workers = 8  # processes that read clips
prefetch_factor = None  # batches that each of them reads ahead; None is torch's default
