"""Text encoder MiniLM, small enough for a laptop."""

text_encoder = dict(
    type="SentenceEncoder",
    from_pretrained=None,  # a folder; None takes the weights that an installed package brings
    width=384,  # of its features; checked when it loads
    max_length=120,  # longest caption in tokens; longer ones are cut
    dtype="fp32",  # of its weights and computation
)
