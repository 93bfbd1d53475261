"""An inference run from a config: check, build, generate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from torch import distributed as dist

from opensora.acceleration.block_compile import compilations, compile_blocks
from opensora.acceleration.parallel import init_distributed, parallel_state, shut_down
from opensora.datasets.resolutions import image_size
from opensora.engine.build import (
    Components,
    build_components,
    build_network,
    names_weights,
    parse_dtype,
    resolve_run,
    without_weights,
)
from opensora.engine.generation import Listen, encode_texts, generate
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.lengths import choose_length
from opensora.engine.long_video import check_loops, find_references
from opensora.engine.offload import Offload
from opensora.engine.output import check_output, file_fps, file_path
from opensora.engine.preview import check_preview
from opensora.engine.prompts import Request, make_requests
from opensora.engine.refinement import invent_prompts, refine_requests
from opensora.layers.attention import set_attention_backend
from opensora.layers.sequence import set_sequence_parallel
from opensora.registry import LOADING_KEYS, MODELS, SCHEDULERS, build
from opensora.schedulers.guidance import Guidance
from opensora.utils.config_defaults import base_configs
from opensora.utils.logging import get_logger
from opensora.utils.meta_device import meta_device
from opensora.utils.weights import check_weights

_PARTS = ("model", "vae", "text_encoder", "scheduler", "guidance")


def infer(cfg: Mapping[str, Any], requests: list[Request] | None = None) -> list[Path]:
    """Make every video or image that a config asks for.

    What can be wrong with settings, sizes, prompts, processes and weight files is found before a network is
    built. Processes that a launcher started share the requests, and part at the end if they met here.

    Args:
        cfg: Keys of `configs/_base_/inference.py` and of the components.
        requests: What to make, of one size and length; None takes it from the config.

    Returns:
        The files that this process made.

    Raises:
        ValueError: A setting is wrong, or weights are another model's.
        TypeError: A component's config does not fit its constructor.
        KeyError: A type is not registered.
        FileNotFoundError: Weights or a prompt file are missing.
        ImportError: A package is missing that the components need.
    """
    return Session(cfg).run(cfg, requests)


class Session:
    """The components of a config, whose networks stay from one run to the next.

    Args:
        cfg: As of `infer`; what can be wrong with it is found here, or by `requests`.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        _check_settings(cfg)
        parse_dtype(cfg["dtype"])
        self.text_encoder = build(MODELS, cfg["text_encoder"])  # it reads its weights when it encodes
        with meta_device():
            self.parts = build_components({**_without_weights(cfg), "text_encoder": self.text_encoder})
        self._networks: dict[str, nn.Module] = {}

    def check_files(self, cfg: Mapping[str, Any]) -> None:
        """Compare the weight files of a config with its networks, and read the tokenizer."""
        _check_files(cfg, self.parts, ["a"])

    def requests(self, cfg: Mapping[str, Any], folder: Path) -> list[Request]:
        """Return what a config asks for; arguments and errors as of `run`, fetched files go to `folder`."""
        _check_settings(cfg)
        with _verbosity(cfg):
            return _requests(cfg, self.parts, folder)

    def run(
        self,
        cfg: Mapping[str, Any],
        requests: list[Request] | None = None,
        listen: Listen | None = None,
        show: Callable[[Request, Tensor], object] | None = None,
    ) -> list[Path]:
        """Make what a config asks for; see `infer`.

        Args:
            cfg: Differs from that of the session in what is made, scheduler and guidance only.
            requests: As of `infer`.
            listen: As of `generate`; it also hears "reading the prompt" and "loading the model".
            show: As of `generate`.
        """
        _check_settings(cfg)
        met = dist.is_initialized()
        with TemporaryDirectory(prefix="opensora-") as name, _verbosity(cfg):
            try:
                return self._run(cfg, requests, Path(name), listen, show)
            finally:
                if not met:
                    shut_down()

    def _run(
        self,
        cfg: Mapping[str, Any],
        requests: list[Request] | None,
        folder: Path,
        listen: Listen | None,
        show: Callable[[Request, Tensor], object] | None,
    ) -> list[Path]:
        guidance = cfg["guidance"]
        parts = replace(
            self.parts,
            scheduler=build(SCHEDULERS, cfg["scheduler"]),
            guidance=Guidance(**guidance) if isinstance(guidance, Mapping) else guidance,
        )
        requests = (
            _requests(cfg, parts, folder)
            if requests is None
            else find_references(requests, parts, cfg, folder)
        )
        device = init_distributed(
            None if cfg["device"] == "auto" else cfg["device"], sp_size=cfg["sp_size"]
        ).device
        if not requests:
            return []
        set_sequence_parallel(parts.model, cfg["sequence_parallel"])  # says if it cannot
        _check_files(cfg, parts, [text for request in requests for text in request.texts])
        state = parallel_state()
        own = requests[state.data_rank :: state.data_size]
        if cfg["llm_refine"]:
            own = refine_requests(own, cfg)
        # The text encoder is the largest part, and gone before the others are read.
        features = encode_texts(self.text_encoder.to(device), own, listen)
        if not self._networks and not cfg["offload"]:  # networks that come and go are not kept here
            networks: dict[str, nn.Module] = {}
            for name in ("model", "vae"):
                if listen is not None:
                    listen("loading the model", len(networks), 2)
                networks[name] = _network(cfg, name, self.text_encoder).to(device)
            self._networks = networks
        diffusion = LatentDiffusion.from_config(cfg, replace(parts, **self._networks))
        if cfg["offload"]:
            make = {name: partial(_network, cfg, name, self.text_encoder) for name in ("model", "vae")}
            diffusion.offload = Offload(device, make)
        paths = list(generate(diffusion, own, cfg, features, show, listen))
        if cfg["compile"]:
            get_logger().info("graphs compiled: %d", compilations())
        return paths


@contextmanager
def _verbosity(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Log what the config asks for within the block."""
    logger = get_logger()
    level = logger.level
    if cfg["verbose"]:
        yield
        return
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)


def _network(cfg: Mapping[str, Any], name: str, text_encoder: Any) -> nn.Module:
    network = (
        build_network(cfg, name, text_encoder).to(parse_dtype(cfg["dtype"])).eval().requires_grad_(False)
    )
    if name == "model":
        set_attention_backend(network, cfg["attention_backend"])
        set_sequence_parallel(network, cfg["sequence_parallel"])
        if cfg["compile"]:
            compile_blocks(network)
    return network


def _check_settings(cfg: Mapping[str, Any]) -> None:
    missing = [key for key in base_configs()["inference"] if key not in cfg]
    if missing:
        raise ValueError(
            f"{', '.join(missing[:5])}: not in this config, so it is no config for inference; import "
            "configs/_base_/inference.py in it, or take one of configs/*/inference."
        )
    absent = [name for name in _PARTS if name not in cfg or cfg[name] is None]
    if absent:
        raise ValueError(f"{', '.join(absent)}: not in this config; inference needs {', '.join(_PARTS)}.")
    if (cfg["llm_refine"] or cfg["random_prompts"]) and cfg["sp_size"] != 1:
        raise ValueError(
            f"sp_size={cfg['sp_size']}: processes that share a video would get different answers of the "
            "language model; refine with sp_size=1."
        )
    if cfg["preview"] is not None:
        check_preview(cfg["preview"])
    check_output(cfg)
    for key in ("batch_size", "num_sample", "frame_interval", "loop", "condition_frame_length"):
        if not isinstance(cfg[key], int) or cfg[key] < 1:
            raise ValueError(f"{key}={cfg[key]!r}: use a whole number from 1.")
    for key in ("fps", "save_fps", "seconds"):
        value = cfg[key]
        if value is None and key != "fps":
            continue
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{key}={value!r}: use a number above 0.")


def _requests(cfg: Mapping[str, Any], parts: Components, folder: Path) -> list[Request]:
    """Return what is to be made and is not there yet; references that are fetched go to `folder`."""
    if cfg["random_prompts"]:
        cfg = {**cfg, "prompt": invent_prompts(cfg)}
    size, vae = _size(cfg), parts.vae
    length = choose_length(vae, cfg["num_frames"], cfg["seconds"], file_fps(cfg))
    vae.latent_shape(length, *size)  # says if the size is too small
    total = check_loops(vae, length, cfg)
    requests = [replace(request, total=total) for request in make_requests(cfg, size, length)]
    kind = "videos" if length > 1 else "images"
    done = 0
    if cfg["prompt_as_path"] or cfg["skip_existing"]:
        files = {file_path(request, cfg): request for request in requests}  # the same prompt twice is one
        done = sum(path.exists() for path in files)
        requests = [request for path, request in files.items() if not path.exists()]
    get_logger().info(
        "%d %s to make, %d frames of %d x %d%s",
        len(requests), kind, total, *size, f"; {done} are there already" if done else "",
    )  # fmt: skip
    Path(cfg["save_dir"]).mkdir(parents=True, exist_ok=True)
    return find_references(requests, parts, cfg, folder)


def _size(cfg: Mapping[str, Any]) -> tuple[int, int]:
    size = cfg["image_size"]
    if size is None:
        return image_size(cfg["resolution"], cfg["aspect_ratio"])
    whole = isinstance(size, list | tuple) and all(isinstance(side, int) and side > 0 for side in size)
    if not whole or len(size) != 2:
        raise ValueError(
            f"image_size={size!r}: give height and width in pixels, such as --image-size 240 426."
        )
    return tuple(size)


def _check_files(cfg: Mapping[str, Any], parts: Components, texts: Sequence[str]) -> None:
    """Compare weight files with the networks, and read the tokenizer; nothing large is read."""
    for name, module in (("model", parts.model), ("vae", parts.vae)):
        part = resolve_run(cfg[name], name, cfg["ema"])
        if not isinstance(part, Mapping) or "from_pretrained" not in part:
            continue  # built by hand: it has its weights
        path = part["from_pretrained"]
        if path is not None:
            loading = {key: part[key] for key in LOADING_KEYS[1:] if key in part}
            check_weights(module, path, **loading)
        elif not names_weights(part):
            flag = "--ckpt-path" if name == "model" else "--vae.from_pretrained"
            raise ValueError(
                f"{name}.from_pretrained=None: without weights there is only noise; give {flag} with a run "
                "folder, a weights file or a hub name."
            )
    if hasattr(parts.text_encoder, "tokenize"):
        parts.text_encoder.tokenize(list(dict.fromkeys(texts)))


def _without_weights(cfg: Mapping[str, Any]) -> dict[str, Any]:
    bare = {**cfg}
    for name in ("model", "vae"):
        if isinstance(bare[name], Mapping):
            bare[name] = without_weights(bare[name])
    return bare
