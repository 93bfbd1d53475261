"""Latents and text features that were extracted beforehand, and their loader.

The folder says which vae and text encoder made it. Named here as well, they are compared before the first
step; their weights are not kept, unless validation decodes samples.
"""

dataset = dict(
    type="FeatureDataset",
    data_path=None,  # folder that scripts/extract_features.py wrote
)
bucket_config = None  # as extracted; another one may change batch sizes only
batch_size = None  # as extracted; or another one, for features of one size
num_workers = 4  # processes that read features
prefetch_factor = None  # batches that each of them reads ahead; None is torch's default
vae = None  # or the one that made the features
text_encoder = None  # likewise
