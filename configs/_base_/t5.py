"""Text encoder T5 v1.1 XXL."""

text_encoder = dict(
    type="T5Encoder",
    from_pretrained="DeepFloyd/t5-v1_1-xxl",  # hub id (needs the network once) or a folder
    width=4096,  # of its features; checked when it loads
    max_length=300,  # longest caption in tokens; longer ones are cut
    dtype="fp32",  # of its weights and computation: "fp32" needs 19 GB, "bf16" half
)
