"""The generated world of moving shapes, and its loader: clips from no file, whose truth is known."""

dataset = dict(
    type="ShapesDataset",
    world="small",  # "small": one shape on a straight path, a plain background; "full": all that there is
    split="train",  # or "unseen": triples of shape, colour and motion that training never shows
    size=6000,  # number of clips
    num_frames=None,  # frames per clip; None with bucket_config
    image_size=None,  # (height, width) in pixels; None with bucket_config
    lengths=(1, 9, 17),  # frames of the clips that fill buckets; 1 is an image
    sizes=((64, 64),),  # their (height, width) in pixels
    fps=8.0,  # frames per second, or several, such as (8, 12, 24)
    caption_style="varied",  # "canonical" tells all alike, "varied" in changing words, "mixed" half and half
    score_format=None,  # "words" or "numbers" appends motion score and camera to captions
    score_dropout=0.2,  # probability that a score is left out, each for itself
    label=None,  # parts that make a class number, such as ("shape", "color"); None makes none
    shapes=None,  # these keys narrow or widen the world; None is the world's own: "circle", "square", ...
    colors=None,  # "red", "yellow", "green", "cyan", "blue", "purple"
    backgrounds=None,  # "black", "white", "gray", "blue", "pink"; never like the object's colour
    patterns=None,  # of the background: "plain", "gradient", "striped", "checkered", "dotted"
    motions=None,  # "left", "up left", ..., "bounce sideways", "spin", "grow", "orbit", "stay", ...
    cameras=None,  # "static", "pan left", "tilt up", "zoom in", ...
    speeds=None,  # words of captions ("" for none) to sides per second, such as {"": 0.42}
    objects=None,  # how many objects there may be, such as (1, 2)
    path=None,  # "centred" passes the centre in the middle, "free" lies anywhere, "endless" goes on
    radius=None,  # smallest and largest radius, as part of the shorter side
    held_out=None,  # whether 5 of 24 triples are kept for the split "unseen"
    world_seed=0,  # names the clips; the seed of the run does not change them
)
bucket_config = None  # {resolution: {frames: (probability, batch size)}}; None is one size for all
batch_size = None  # clips per batch; None with bucket_config, which has its own
num_workers = 0  # processes that draw clips; about 800 small ones per second and core
prefetch_factor = None  # batches that each of them draws ahead; None is torch's default
