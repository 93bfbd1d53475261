"""Latents and text features that were extracted beforehand, and their loader: no vae, no text encoder.

What these would tell the model stands in the config: model.in_channels, and text_width and text_length of
model.conditions.text.
"""

dataset = dict(
    type="FeatureDataset",
    data_path=None,  # folder that scripts/extract_features.py wrote
)
num_workers = 4  # processes that read features
prefetch_factor = None  # batches that each of them reads ahead; None is torch's default
vae = None  # latents come from files
text_encoder = None  # so do text features
