"""Choose the compact subset of golden vectors that the repository carries.

    python tests/golden/make_subset.py FULL_DIR tests/golden/vectors

Every kind and every mechanism stays in, few cases each. Files are packed with xz, because weights are most of
them.
"""

import argparse
import json
import lzma
from pathlib import Path

from safetensors.torch import load_file, save

# All cases of a file, or those that start with one of these names.
CHOSEN: dict[str, list[str] | None] = {
    "stdit3_models": [
        *(
            "t2v_small_grid",
            "t2v_odd_patch",
            "spatial_rope_image",
            "i2v_loop",
            "no_text_mask",
            "skip_y_embedder",
        ),
        "gradients",
    ],
    "stdit3_parts": [
        *("attn_shift_odd_kernel_t", "attn_rope_2d", "cross_attn_packed", "pos_embed_3"),
        *("timestep", "rotary", "patch_embed", "final_layer_masked", "caption", "size"),
    ],
    "stdit3_v12": ["x_mask"],
    "vae_v12": [
        "temporal",
        "pipeline_encode_T1_",
        "pipeline_decode_t1_",
        "pipeline_encode_T21",
        "pipeline_latent_size_0",
    ],
    "vae_v13": [
        *(
            "encode_image",
            "encode_T33_overlap",
            "encode_odd",
            "encode_even",
            "encode_norm5_image",
            "decode_image",
        ),
        *(
            "decode_t10_overlap",
            "train_gradients",
            "normalize",
            "tiled_conv",
            "disc3d_train1",
            "latent_size_2",
        ),
    ],
    "rectified_flow_v12": [
        "timestep_transform_0",
        "loss_x_mask",
        "sample_mask_edit",
        "sample_transform_image",
    ],
    "rectified_flow_v13": [
        *(
            "timestep_transform_0",
            "logit",
            "add_noise",
            "mean_flat",
            "loss_weights",
            "loss_i2v_null",
            "loss_i2v_weighted",
        ),
        *(
            "loss_x_gt_threshold",
            "sample_discrete_transform",
            "sample_mask_edit",
            "sample_neg",
            "sample_oscillation",
        ),
        *("sample_i2v_full", "sample_i2v_batch2", "sample_empty", "osc", "flaw_fix", "dyn", "scale"),
    ],
    "manifests_v13_code": ["STDiT3-XL/2 v1.3 (", "OpenSoraVAE", "N_LAYER", "DISCRIMINATOR_3D"],
    "manifests_v12_code": ["STDiT3-XL"],
    "text_cleaning": None,
    "inference_helpers_v12": None,
    "inference_helpers_v13": None,
    "transforms": [
        "video_resize_crop_to_fill_0",
        "video_transform_center_3",
        "image_transform",
        "temporal",
        "downsample",
    ],
    "buckets_and_aspects": [],  # two cases per function
}
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lp": 1, "pb": 1}]  # float16 comes in pairs of bytes


def main() -> None:
    """Write the subset."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    args.target.mkdir(parents=True, exist_ok=True)
    for old in args.target.glob("*.xz"):
        old.unlink()
    total = 0
    for stem, names in CHOSEN.items():
        document = json.loads((args.source / f"{stem}.json").read_text())
        for function in document.get("functions", {}).values():
            function["cases"] = function["cases"] if names is None else function["cases"][:2]
        for key in ("cases", "models"):
            if key in document:
                document[key] = choose(document[key], names)
        total += pack(args.target / f"{stem}.json.xz", json.dumps(document).encode())
        tensors = args.source / f"{stem}.safetensors"
        if tensors.exists():
            prefixes = tuple(f"{c['name']}/" for c in document["cases"])
            prefixes += tuple(f"weights/{c['weights']}/" for c in document["cases"] if "weights" in c)
            kept = {k: v for k, v in load_file(tensors).items() if k.startswith(prefixes)}
            total += pack(args.target / f"{stem}.safetensors.xz", save(kept))
    print(f"{total / 1e6:.2f} MB in {args.target}")


def choose(cases: list | dict, names: list[str] | None) -> list | dict:
    """Keep cases whose name starts with one of `names`; None keeps all."""
    if isinstance(cases, dict):
        return {
            name: value for name, value in cases.items() if names is None or name.startswith(tuple(names))
        }
    return [case for case in cases if names is None or case["name"].startswith(tuple(names))]


def pack(path: Path, data: bytes) -> int:
    """Write a packed file; return its size."""
    packed = lzma.compress(data, filters=FILTERS)
    path.write_bytes(packed)
    return len(packed)


if __name__ == "__main__":
    main()
