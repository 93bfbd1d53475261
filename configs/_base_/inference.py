"""Inference: every key of making videos from prompts."""

seed = 42  # with the prompt and the number of the sample it names the noise
dtype = "bf16"  # of model and vae: "bf16", "fp16" or "fp32"
device = "auto"  # "auto" takes a GPU where there is one; "cpu" or "cuda" insist
ema = True  # of a run folder given as weights, take the averaged weights where there are some
attention_backend = "auto"  # "auto", "math", "sdpa", "cudnn" or "flash"; see docs/performance.md
compile = False  # compile each block of the model with torch.compile at its first step; pays for long videos
sp_size = 1  # processes that share the tokens of one video; divides the number of processes
sequence_parallel = "auto"  # how they share: "axis" (moves least), "ulysses" (always even) or "auto"
offload = False  # only the network that works in memory: others wait on the host, on a CPU they are freed
preview = None  # every so many steps, write a few frames of what the video will be beside it
verbose = 1  # 0 is silent, 1 logs a line every ten seconds, 2 every step

# What
prompt = None  # list of prompts; several words after --prompt are several prompts
prompt_path = (
    None  # or a file: .txt with a prompt per line, .csv with a column `text`, .jsonl with a key `text`
)
start_index = 0  # first prompt of the file, from 0, and number of the first saved file
end_index = None  # prompt of the file to stop before; None is the last
csv_reference_column_name = None  # column of the .csv that holds reference paths
neg_prompt = None  # list of negative prompts: one for all, or one per prompt; None is the null caption
clean_prompts = False  # lower case, no markup: as released weights read prompts; own training does not clean
num_sample = 1  # videos per prompt
batch_size = 1  # videos at once on a GPU; a CPU makes one after the other

# Size
resolution = "240p"  # name of a resolution, see docs/config.md
aspect_ratio = "9:16"  # height:width; 9:16 is landscape
image_size = None  # (height, width) in pixels; wins over resolution and aspect_ratio
num_frames = 51  # frames, or a name such as "4s", cut to the longest length that the vae gives back
seconds = None  # duration of the file instead of num_frames, rounded to what the vae gives back
fps = 24  # frames per second that the model is asked for
frame_interval = 1  # frames of the asked rate per saved frame
save_fps = None  # frames per second of the file; None is fps / frame_interval

# Long videos
loop = 1  # clips that continue each other
condition_frame_length = 5  # latent frames that a clip takes over from the clip before; and of v2v references
condition_frame_edit = 0.0  # how far they are made anew, 0 not at all, 1 fully

# References
reference_path = None  # list, per prompt: paths of images or videos, separated by ";"
mask_strategy = None  # list, per prompt: which frames the references give, see docs/inference.md
align = None  # round frame positions of numbers in mask_strategy to multiples of this many latent frames
cond_type = (
    None  # None, "i2v_head", "i2v_tail", "i2v_loop", "v2v_head" or "v2v_tail": frames of the references
)
known_as = "auto"  # given frames are "frames" at time 0, or a "reference" beside the noise; auto: as trained
references = dict(
    folders=None,  # list of folders that references must lie in, for prompts of strangers; None is any
    urls=False,  # fetch references over http and https
    hosts=[],  # only from these hosts, if there are some; private addresses only from here
    megabytes=64.0,  # size of a fetched file at most
    seconds=30.0,  # time for fetching one at most
)

# Text that is appended to prompts
aes = None  # aesthetic score, a number or a word
flow = None  # motion score, a number or a word
camera_motion = None  # such as "pan left"
score_format = "words"  # of aes and flow: "words" as 1.3 learned, "numbers" as 1.2 did
llm_refine = False  # let a language model rewrite prompts: sends them, and first frames, to its server
random_prompts = 0  # prompts to ask the language model for, instead of prompt
llm = dict(
    model="gpt-4o",  # as the server at OPENAI_BASE_URL calls it; its key is in OPENAI_API_KEY
    timeout_s=30.0,  # seconds for an answer
    retries=2,  # how often to ask again after an error that may pass
)

# Files
save_dir = "samples/samples"  # folder of the videos
sample_name = None  # start of the file names; None is "sample", or nothing with prompt_as_path
prompt_as_path = False  # name files after their prompts, and skip those that exist
skip_existing = False  # make only files that are not there; prompt_as_path always does
video_format = "mp4"  # "mp4" or "mkv" (H.264), "webm" (VP9), or "png" (a folder of frames)
crf = None  # quality of videos, from 0 (best, largest) to 51; None looks like the original
contact_sheet = True  # beside each video, a picture of eight of its frames
metadata = True  # write prompt, seed, weights and the whole config into each file, for --replay
weight_hashes = "cache/weights.json"  # remembers hashes of weight files; None hashes them at each start
postprocess = []  # list of steps on the video, such as [dict(type="Deflicker"), dict(type="Watermark")]

# What the weights have learned: the demo page says what goes beyond. None says nothing; no video changes
trained = dict(
    resolutions=None,  # list of names
    aspect_ratios=None,  # list of height:width
    num_frames=None,  # list of lengths
    given_frames=None,  # whether frames were given in training
    prompts=None,  # list of examples in words that they learned
    scores=False,  # whether captions ended in scores, as words or numbers
)
