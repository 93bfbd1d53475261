"""Text encoder CLIP ViT-L/14."""

text_encoder = dict(
    type="CLIPTextEncoder",
    from_pretrained="openai/clip-vit-large-patch14",  # hub id (needs the network once) or a folder
    width=768,  # of its features; checked when it loads
    max_length=77,  # longest caption in tokens; longer ones are cut
    pooled=True,  # one vector per caption instead of one per token
    dtype="fp32",  # of its weights and computation
)
