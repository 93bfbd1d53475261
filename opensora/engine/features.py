"""What made cached features, and training from them without the encoders that made them."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opensora.engine.build import resolve_run
from opensora.layers.interfaces import Posterior
from opensora.layers.vae_blocks import draw_latents
from opensora.registry import LOADING_KEYS, MODELS, bind, build, resolve
from opensora.utils.logging import get_logger

# Settings that change memory and speed only, so features do not depend on them.
_FREE = {*LOADING_KEYS, "micro_batch_size", "micro_batch_size_2d", "tile_size", "tile_axis", "num_tiles"}
_PROBE = ("a dog, running on a beach", "Größe 12.5 — 3/4!")  # what they are cut into tells tokenizers apart


def encode_moments(vae: nn.Module, clip: Tensor, draws: Any = None) -> Tensor | None:
    """Return what the latents of a clip are made from, whatever the noise of the posterior.

    Args:
        vae: The autoencoder.
        clip: Shape [3, T, H, W].
        draws: Random numbers of the sample, for an autoencoder whose moments depend on some.

    Returns:
        Mean and logarithm of the variance, float32, not normalised; None if it has no posterior. Shape
        [2, Z, T, H, W].
    """
    if not hasattr(vae, "posterior"):
        return None
    extra = {"draws": draws} if moments_are_drawn(vae) else {}
    posterior = vae.posterior(clip[None].to(next(vae.parameters())), **extra)
    return torch.stack((posterior.mean[0], posterior.logvar[0]))


def latents_of(vae: nn.Module, moments: Tensor, draws: Any = None) -> Tensor:
    """Return the latents that `vae.encode` gives for the clips of these moments.

    Args:
        vae: The autoencoder; its weights are not used.
        moments: Shape [B, 2, Z, T, H, W].
        draws: Makes the noise of a sample; None takes the mean.

    Returns:
        float32. Shape [B, Z, T, H, W].
    """
    return vae.normalize(draw_latents(Posterior(*moments.float().unbind(1)), draws))


def moments_are_drawn(vae: nn.Module) -> bool:
    """Say whether an autoencoder draws random numbers before the posterior of the latents."""
    return "draws" in inspect.signature(vae.posterior).parameters if hasattr(vae, "posterior") else False


def describe_vae(vae: nn.Module, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an autoencoder's features depend on, as JSON.

    Args:
        vae: As loaded, in float32.
        cfg: Its config.
    """
    own = {name: value.tolist() for name, value in vae.named_buffers(recurse=False)}
    shapes = {name: list(value.shape) for name, value in vae.named_buffers(recurse=False)}
    parts = {"settings": settings_of(cfg), "weights": hash_weights(vae), "buffers": own, "shapes": shapes}
    return {**parts, "arguments": settings_of(cfg, everything=True)}


def describe_text_encoder(encoder: nn.Module, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a text encoder's features depend on, as JSON. Loads it."""
    tokens = encoder.tokenize(list(_PROBE))
    encoder.encode([_PROBE[0]])  # loads the weights
    parts = {"settings": settings_of(cfg), "weights": hash_weights(encoder), "tokens": tokens}
    return {**parts, "arguments": _as_json(cfg)}


def text_projection(model: nn.Module) -> nn.Module:
    """Return what projects captions to the width of a model.

    Raises:
        ValueError: The model has no TextCondition.
    """
    for condition in model.conditions.values():
        if hasattr(condition, "y_proj"):
            return condition.y_proj
    raise ValueError(
        "save_compressed_text_features=True, and the model has no TextCondition that projects captions; set "
        "it to False."
    )


def settings_of(cfg: Mapping[str, Any], everything: bool = False) -> dict[str, Any]:
    """Return a component's arguments, its defaults included, without those that change no number.

    Args:
        cfg: Config of the component; parts of it may be components.
        everything: Keep those too, but never which weights are loaded.
    """
    _, given = bind(MODELS, cfg)
    parameters = inspect.signature(resolve(MODELS, cfg["type"])).parameters
    whole = {name: p.default for name, p in parameters.items() if p.default is not p.empty} | given
    left_out = LOADING_KEYS if everything else _FREE
    found = {"type": cfg["type"]}
    for name, value in whole.items():
        if name not in left_out:
            part = isinstance(value, Mapping) and "type" in value
            found[name] = settings_of(value, everything) if part else _as_json(value)
    return found


def without_arguments(part: Any) -> Any:
    """Leave out of a header what may differ between starts: paths of weights, settings of memory."""
    if not isinstance(part, Mapping):
        return part
    return {name: without_arguments(value) for name, value in part.items() if name != "arguments"}


def hash_weights(module: nn.Module) -> str:
    """Return the hash of a module's parameters and buffers: names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def task_on_features(
    make_task: Callable[[Mapping[str, Any]], Any], cfg: Mapping[str, Any], header: Mapping[str, Any]
) -> Callable[[Mapping[str, Any]], Any]:
    """Return what builds a task for batches of features: its encoders are there without their weights.

    Those of the config are compared with those that made the features. The autoencoder keeps its weights
    only if validation decodes samples.

    Args:
        make_task: Builds the task from a config.
        cfg: Config of the run; `vae` and `text_encoder` may be None.
        header: `header` of a `FeatureDataset`.

    Raises:
        ValueError: The features were made by other encoders, or the run needs clips.
    """
    if "model" not in cfg:
        raise ValueError("these data are features: an autoencoder is trained on clips; use VideoDataset.")
    made = header["encoders"]
    if made["dtype"] != cfg["dtype"]:
        get_logger().info("features were made in %s, this run computes in %s", made["dtype"], cfg["dtype"])
    if header["sample_posterior"] not in (None, cfg["sample_posterior"]):
        raise ValueError(
            f"sample_posterior={cfg['sample_posterior']}: these features were made with "
            f"{header['sample_posterior']}, and the moments of this vae depend on it; set that, or extract "
            "anew."
        )
    encoders = {"vae": _vae(cfg, made["vae"]), "text_encoder": _text_encoder(cfg, made["text_encoder"])}

    def make(cfg: Mapping[str, Any]) -> Any:
        task = make_task({**cfg, **encoders})
        _check_projection(task.model, made["text_encoder"])
        for name, part in {**task.model.conditions, "noise_augmentation": task.augmentation}.items():
            if getattr(part, "needs_pixels", False):
                raise ValueError(
                    f"{name} changes pixels, and these data are features; train on clips for that."
                )
        return task

    return make


def _vae(cfg: Mapping[str, Any], made: Mapping[str, Any]) -> nn.Module:
    decodes = bool(cfg["validate_every"] and cfg["validation"]["sample"])
    if cfg["vae"] is not None:
        vae = build(MODELS, resolve_run(cfg["vae"], "vae", cfg["ema"] if "ema" in cfg else True))
        _compare("vae", made, describe_vae(vae, cfg["vae"]))
        if decodes:
            return vae
    elif decodes:
        raise ValueError(
            "validation.sample=True decodes a sample, and vae is None; set validation.sample=False, or give "
            "the vae that made the features."
        )
    return _vae_without_weights(made)


def _check_projection(model: nn.Module, made: Mapping[str, Any] | None) -> None:
    for name, condition in model.conditions.items():
        if made is None or not hasattr(condition, "projected") or next(condition.parameters()).is_meta:
            continue
        if condition.projected != (made["projected"] is not None):
            raise ValueError(
                f"model.conditions.{name}.projected={condition.projected}: these features were "
                f"{'not ' if condition.projected else ''}projected; set the opposite, or extract them anew."
            )
        if condition.projected and hash_weights(condition.y_proj) != made["projected"]:
            raise ValueError(
                f"model.conditions.{name}.y_proj has other weights than the projection of these features; "
                "start from the model that projected them (--ckpt-path), and freeze conditions.text."
            )


def _text_encoder(cfg: Mapping[str, Any], made: Mapping[str, Any] | None) -> nn.Module | None:
    """Return a text encoder that is never loaded; it knows the width of the features."""
    given = cfg["text_encoder"]
    kinds = [part["type"] for part in cfg["model"]["conditions"].values()]
    if made is None and (given is not None or "TextCondition" in kinds):
        raise ValueError(
            "these features have no captions, and the model has a TextCondition; extract them with "
            "save_text_features=True and a text_encoder, or leave captions out of this config."
        )
    if made is None:
        return None
    if given is not None:
        encoder = build(MODELS, given)
        _compare("text_encoder", made, describe_text_encoder(encoder, given))
        encoder.release()
    return build(MODELS, made["arguments"])


def _vae_without_weights(made: Mapping[str, Any]) -> nn.Module:
    """Build an autoencoder on the meta device; only what normalises latents is real."""
    with torch.device("meta"):
        vae = build(MODELS, made["arguments"])
    for name, values in made["buffers"].items():
        setattr(vae, name, torch.tensor(values).reshape(made["shapes"][name]))
    return vae


def _compare(name: str, made: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    # Read as today's constructor would: an argument that is new since then has its default.
    then = {**made, "settings": settings_of(made["arguments"])}
    for part in ("settings", "buffers", "tokens", "weights"):
        if part in here and then[part] != here[part]:
            raise ValueError(f"{name}: {_difference(part, then[part], here[part])}")


def _difference(part: str, made: Any, here: Any) -> str:
    remedy = "set what they were made with, or extract them anew with scripts/extract_features.py."
    if isinstance(made, Mapping) and isinstance(here, Mapping):
        for key in {**made, **here}:
            if (made[key] if key in made else None) != (here[key] if key in here else None):
                old, new = made[key] if key in made else None, here[key] if key in here else None
                return f"{key}={new!r}, and these features were made with {old!r}; {remedy}"
    what = {"weights": "other weights", "tokens": "another tokenizer"}
    other = what[part] if part in what else part
    return f"these features were made with {other} ({made} then, {here} now); {remedy}"


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value
