"""Clips and images from a table, and their loader."""

dataset = dict(
    type="VideoDataset",
    data_path=None,  # table (.csv, .csv.gz, .parquet, .jsonl, .json), or a folder of clips
    layout="captions",  # of a folder: "captions" (beside files), "classes" or "frames" (a folder each)
    columns=None,  # names in the table where they are not ours, such as {"text": "caption"}
    root=None,  # folder where relative paths of the table start; None is where Python was started
    num_frames=None,  # frames per clip; None with bucket_config
    frame_interval=1,  # take every n-th frame
    image_size=None,  # (height, width) in pixels; None with bucket_config
    transform="resize_crop",  # "resize_crop" fills the size and crops, "center" does so for squares;
    # "random_crop" takes a window anywhere, "rand_size_crop" one whose sides are between those of image_size
    flip=0.0,  # probability that a clip is mirrored left to right
    num_images=0,  # images behind each clip, drawn from the table, for models that train on both together
    reader="pyav",  # "pyav", or "torchcodec" if it is installed
    scaling="torch",  # "torch" scales as published, "swscale" with a low-pass filter against jagged edges
    timeout_s=60.0,  # seconds that one file may take before another takes its place
    retries=2,  # a file is read again so often after an error that may pass, of a network disk for example
    probe=False,  # read sizes and lengths from the files where the table lacks them; of a folder always
    cache="cache/tables",  # folder for columns of large tables and for probed sizes; None: in memory
    clean_captions=False,  # lower case, no markup, no CJK: as released weights read; set clean_prompts too
    score_format=None,  # "words" or "numbers" appends the columns aes, flow and cmotion to captions
    score_dropout=0.2,  # probability that a score is left out, each for itself
    check_files=1000,  # files that are looked for before the run starts, some are opened; 0 trusts the table
    quarantined=None,  # quarantine.jsonl of another run: its clips are not tried, from the epochs in it on
)
bucket_config = None  # {resolution: {frames: (probability, batch size)}}; None is one size for all
batch_size = None  # clips per batch; None with bucket_config, which has its own
num_workers = 8  # processes that read clips
prefetch_factor = None  # batches that each of them reads ahead; None is torch's default
