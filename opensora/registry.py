"""The five registries, and `build`, which turns a config dict into a component.

A component names itself with `@MODELS.register_module()`. Modules of a floor-3 package are found by their
file name and imported at the first lookup, so a new component is one new file and no list is edited.
"""

import difflib
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import Registry

_ROOT = Path(__file__).parent

# Keys of a model config that say which weights to load. `build` handles them for every model alike.
LOADING_KEYS = ("from_pretrained", "ignore_keys", "adapt_channels")


def _registry(name: str, package: str) -> Registry:
    folder = _ROOT / package
    modules = sorted(m.name for m in pkgutil.iter_modules([str(folder)]))
    return Registry(name, locations=[f"opensora.{package}.{module}" for module in modules], scope="opensora")


MODELS = _registry("model", "models")
CONDITIONS = _registry("condition", "conditions")
SCHEDULERS = _registry("scheduler", "schedulers")
DATASETS = _registry("dataset", "datasets")
POSTPROCESSORS = Registry("postprocessor", locations=["opensora.postprocess"], scope="opensora")


def resolve(registry: Registry, kind: str | type) -> Any:
    """Return the registered class or factory called `kind`; a class stands for itself.

    Raises:
        KeyError: The name is not registered; the message lists the nearest names.
    """
    if not isinstance(kind, str):
        return kind
    found = registry.get(kind)
    if found is None:
        names = sorted(registry.module_dict)
        near = difflib.get_close_matches(kind, names, n=3, cutoff=0.4)
        hint = (
            f"Did you mean {' or '.join(near)}?" if near else f"Registered: {', '.join(names) or 'nothing'}."
        )
        raise KeyError(
            f"type={kind!r}: no such {registry.name}. {hint} A class of your own may stand in its place."
        )
    return found


def bind(registry: Registry, cfg: Mapping[str, Any], **facts: Any) -> tuple[Any, dict[str, Any]]:
    """Check a component's config against its constructor, without calling it.

    Args:
        registry: Where `cfg["type"]` is looked up.
        cfg: The component's config; `type` selects the class, the other keys are its arguments.
        facts: Values known only at run time (the latent channels, the caption width); they win over the
            config.

    Returns:
        The class or factory, and the arguments to call it with.

    Raises:
        TypeError: `cfg` is not a mapping with a `type`, or a key is unknown or missing.
    """
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise TypeError(
            f"{registry.name} config {cfg!r}: expected a dict with a key 'type', or an object built already."
        )
    arguments = {**cfg, **facts}
    target = resolve(registry, arguments.pop("type"))
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return target, arguments
    for key in arguments:
        if key not in parameters and key not in LOADING_KEYS:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(parameters)}."
            raise TypeError(f"{cfg['type']}: unknown key {key!r} (value {arguments[key]!r}); {hint}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise TypeError(
            f"{cfg['type']}: {', '.join(missing)} must be given in the config; got {sorted(arguments)}."
        )
    return target, arguments


def register_preset(registry: Registry, name: str, cls: type, **values: Any) -> None:
    """Register `name` as `cls` with other defaults.

    A preset has the signature of its class, so configs bind to it.

    Args:
        registry: Where to register.
        name: Preset name, such as "STDiT3-XL/2".
        cls: The class.
        values: Arguments that make the preset; a config may still override them.
    """

    def preset(**kwargs: Any) -> Any:
        return cls(**{**values, **kwargs})

    signature = inspect.signature(cls)
    parameters = [p.replace(default=values.get(p.name, p.default)) for p in signature.parameters.values()]
    preset.__signature__ = signature.replace(parameters=parameters)
    preset.__name__, preset.__doc__ = name, f"Build {cls.__name__} as {name}: {values}."
    registry.register_module(name, module=preset)


def fill_in(registry: Registry, cfg: Any, **facts: Any) -> dict[str, Any]:
    """Return a config with those facts added that its constructor asks for and that it does not set."""
    wanted = inspect.signature(resolve(registry, cfg["type"])).parameters
    return {**{key: value for key, value in facts.items() if key in wanted}, **cfg}


def build(registry: Registry, cfg: Any, **facts: Any) -> Any:
    """Build the component that `cfg` describes.

    `None` and objects that are built already pass through, so code may hand over either. For a model whose
    config has `from_pretrained`, the module is built on the meta device, the file's keys and shapes are
    compared with it, and only then are the weights read (`opensora.utils.weights.load_weights`).

    Args:
        registry: Where `cfg["type"]` is looked up.
        cfg: A config dict with `type`, an object, or None.
        facts: Values known only at run time; they win over the config.

    Raises:
        TypeError: The config does not fit the constructor.
        KeyError: The type is not registered.
    """
    if cfg is None or not isinstance(cfg, Mapping):
        return cfg
    target, arguments = bind(registry, cfg, **facts)
    own = inspect.signature(target).parameters  # a text encoder has a `from_pretrained` of its own
    loading = {key: arguments.pop(key) for key in LOADING_KEYS if key in arguments and key not in own}
    if loading.get("from_pretrained") is None:
        return target(**arguments)

    import torch

    from opensora.utils.meta_device import meta_device
    from opensora.utils.weights import load_weights

    # Parameters that the file may lack need their initial values, so such a module is built for real.
    with torch.device("cpu") if loading.get("ignore_keys") else meta_device():
        module = target(**arguments)
    load_weights(module, loading.pop("from_pretrained"), **loading)
    return module
