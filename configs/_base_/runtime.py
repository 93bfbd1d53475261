"""Training: every key of the run itself. The parts (model, vae, data, ...) are in the other files."""

seed = 42  # names every random number of the run; the number of processes does not change them
dtype = "bf16"  # of computation: "bf16", "fp16" or "fp32"; weights and optimizer stay in fp32
deterministic = False  # on GPUs: only kernels that give the same bits every time, which are slower
attention_backend = "auto"  # "auto", "math", "sdpa", "cudnn" or "flash"; see docs/performance.md
compile = False  # compile each block of the model with torch.compile, before the first step, for all buckets

# Processes
device = "auto"  # "auto" takes GPUs where there are some; "cpu" or "cuda" insist
plugin = "zero2"  # None (one process), "ddp", "fsdp2", "zero1", "zero2"; zeroN-seq is zeroN
sp_size = 1  # processes that share the tokens of the same clips; divides the number of processes
sequence_parallel = "auto"  # how they share: "axis" (moves least), "ulysses" (always even) or "auto"
reduce_bucket_size_in_m = 20  # ddp, ZeRO: gradients reduced at once, in millions of numbers
overlap_communication = True  # ZeRO on GPUs: reduce gradients beside the backward pass
offload = False  # zero1, zero2, fsdp2: keep optimizer state in the memory of the CPU, and update there
hang_timeout_s = 600.0  # seconds without progress after which a run stops and says who hangs; 0 never

# Optimization
epochs = 1000  # passes over the data
max_steps = None  # stop after so many steps; None runs all epochs
batches_per_step = None  # batches behind one step, over all processes; None is processes x accumulation_steps
accumulation_steps = 1  # batches that a process adds up before a step
plan = dict(
    bucket_rule="resolution",  # "resolution": 0.8 of its area is enough; "ratio": ratio first, never enlarge
    remainder="carry",  # rows that fill no batch or step: "carry" to the next epoch, or "pad" by repeating
    starved="merge",  # a bucket that can never fill a batch: "error", "merge" its clips into others, "drop"
    max_dropped=0.5,  # share of the table that may fit no bucket or be left over; more is an error
    costs=None,  # seconds of a batch, {resolution: {frames: seconds}}, or a JSON file; None counts pixels
)
activation_checkpoint = True  # compute activations twice to save memory
grad_clip = 1.0  # largest norm of the gradient; 0 does not clip
ema_decay = 0.99  # per step, of the averaged weights; None keeps no average
optimizer = dict(
    lr=1e-4,  # learning rate after warm-up
    weight_decay=0.0,  # of AdamW
    eps=1e-15,  # of AdamW; small, because gradients of adapted layers start tiny
    betas=(0.9, 0.999),  # of AdamW
)
lr_schedule = dict(
    warmup_steps=0,  # steps of linear warm-up; 0 starts at lr
    initial_lr=1e-6,  # where the warm-up starts
    cosine=False,  # after the warm-up, fall to 0 along a cosine until the last epoch ends
)
lora = None  # or dict(rank=16, targets=("attn", "cross_attn")): train low-rank additions to these layers only

# Output
outputs = "outputs"  # folder of the run folders
run_name = (
    None  # fixed name of the run folder; None makes NNN-MODEL. A second start of a named run continues it
)
load = None  # checkpoint to continue: None, "latest" (of run_name) or a folder
start_from_scratch = False  # with load: take weights and optimizer, start at epoch 0
accept_changes = False  # go on though settings differ from the checkpoint's; a new plan begins a new epoch
log_every = 10  # steps between lines of the log
ckpt_every = 500  # steps between checkpoints; 0 saves at the end only
ckpt_keep = 0  # checkpoints that stay, the latest ones; 0 keeps all
ckpt_keep_every = 0  # steps; checkpoints of their multiples stay too, whatever ckpt_keep says
validate_every = 0  # steps between validations; 0 never validates
validation = dict(
    num_batches=1,  # batches of the first epoch that are measured, always the same
    num_times=10,  # times at which the loss is measured, evenly spaced
    sample=True,  # also save a sample for the first caption, in samples/ of the run folder
)
patience = 20  # steps in a row without finite gradients after which a run goes back to a checkpoint
skip_steps = ()  # steps, from 0, that make no update: those that another run skipped, as in its state.json
wandb = False  # also log to Weights & Biases: into files, or to its server with WANDB_MODE=online
tensorboard = False  # also write TensorBoard files
record_time = False  # time the phases of each step
