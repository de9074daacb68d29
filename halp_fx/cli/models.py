"""A model's name on the command line -> an `nn.Module` in eval mode, with weights from a file and inputs by shape."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import an
from ..errors import HalpError, ModelError
from ..extras import missing
from .weights import load_folder, load_weights, weights_in

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .output import Output

SHAPE = "1x3x224x224"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a command line says of a model; `load` makes it.

    Attributes:
        name: as `options.MODEL_FORMS`.
        shapes: of the inputs; empty: one image batch as `SHAPE` says.
        settings: arguments of the factory, "NAME=VALUE".
        weights: a file of weights; None: those of the folder in hf:FOLDER, if it has any.
    """

    name: str
    shapes: Sequence[str] = ()
    settings: Sequence[str] = ()
    weights: Path | None = None
    dtype: str = "float32"
    device: str = "cpu"
    channels_last: bool = False

    def say_untrained(self, output: Output) -> None:
        """Say so where a library makes it with random weights, and no file has others."""
        kind, colon, rest = self.name.partition(":")
        made_here = not colon or (kind in _FAMILIES and not rest.endswith(".pt"))
        if self.weights is None and self._folder() is None and made_here:
            output.say(f"{self.name} has random weights: name a file of trained ones with --weights")

    def _folder(self) -> Path | None:
        """In hf:FOLDER one that has the weights, too, unless --weights names others."""
        kind, _, rest = self.name.partition(":")
        own = weights_in(Path(rest)) if kind == "hf" else None
        mine = own is not None and (self.weights is None or self.weights.resolve() == own.resolve())
        return Path(rest) if mine else None

    def load(self) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        """The model in eval mode, its random weights the same at every call, and random inputs for it.

        Raises:
            ModelError: no such model, weights that do not fit, a malformed shape, dtype or device.
        """
        import torch

        kind, device = _dtype(self.dtype), _device(self.device)
        sizes = [parse_shape(shape) for shape in self.shapes or (SHAPE,)]
        with torch.random.fork_rng(devices=[]):  # The same at every call: a kept search (--state) goes on with them.
            torch.default_generator.manual_seed(0)
            if (folder := self._folder()) is not None:
                model = _saved(folder, parse_settings(self.settings))
            else:
                model = make_model(self.name, parse_settings(self.settings))
        if self.weights is not None and folder is None:
            load_weights(model, self.weights)
        model = model.eval().to(device, kind)
        inputs = tuple(torch.rand(size, device=device, dtype=torch.float32).to(kind) for size in sizes)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
            inputs = tuple(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)
        return model, inputs


def parse_shape(text: str) -> tuple[int, ...]:
    """ "1x3x224x224" -> (1, 3, 224, 224).

    Raises:
        ModelError: malformed.
    """
    try:
        sizes = tuple(int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ModelError(f"shape {text!r} is malformed: write the sizes with the batch first, e.g. {SHAPE}")
    return sizes


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """ "num_classes=10" -> {"num_classes": 10}: numbers, True, None, lists; anything else is a word.

    Raises:
        ModelError: no "=".
    """
    found: dict[str, Any] = {}
    for entry in settings:
        name, equals, value = entry.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ModelError(f"--set {entry!r} is malformed: write NAME=VALUE, e.g. num_classes=10")
        try:
            found[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name.strip()] = value
    return found


def make_model(name: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The model that a name means, with weights as its library initialises them.

    Raises:
        ModelError: there is none of this name (the nearest names are named), its library is missing, or its factory
            fails.
    """
    from torch import nn

    kind, colon, rest = name.partition(":")
    make: Callable[..., Any] = _FAMILIES.get(kind, _factory) if colon else _torchvision
    model = make(rest if kind in _FAMILIES and colon else name, dict(arguments or {}))
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name!r} gave {an(type(model).__name__)}, not an nn.Module")
    return model


def import_function(name: str) -> Any:
    """What "package.module:function" or "file.py:function" means; the working directory is on the path.

    Raises:
        ModelError: no such module or function.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ModelError(f"{name!r} names no function: write module:function or file.py:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _module(place)
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ModelError(f"{place} has no {attribute!r}{_nearest(attribute, public)}") from None


def _module(place: str) -> Any:
    """A module by its name, or a file."""
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise ModelError(f"there is no file {place}")
    try:
        return _loaded(Path(place)) if is_file else importlib.import_module(place)
    except HalpError:
        raise
    except ModuleNotFoundError as error:
        hint = _nearest(place, _FAMILIES) if "." not in place else ""
        raise ModelError(f"{place!r} cannot be imported: {error}{hint}") from error
    except Exception as error:  # Whatever a user's file may raise while it is imported.
        raise ModelError(f"{place!r} cannot be imported: {type(error).__name__}: {error}") from error


def _loaded(path: Path) -> Any:
    """The module in a file, under the file's name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _factory(name: str, arguments: dict[str, Any]) -> Any:
    from torch import nn

    found = import_function(name)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ModelError(f"{name!r} is {an(type(found).__name__)}, neither an nn.Module nor a function")
    return _called(name, found, arguments)


def _torchvision(name: str, arguments: dict[str, Any]) -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        raise ModelError(missing(f"torchvision:{name}", "torchvision", error)) from error
    if name not in (known := models.list_models()):
        near = _nearest(name, known) or _meant(name) or "."
        forms = "Models of others: timm:…, ultralytics:…, hf:…, package.module:factory, file.py:factory"
        raise ModelError(f"torchvision has no model {name!r}{near} {forms}")
    builder = models.get_model_builder(name)
    # Detectors would fetch a backbone's weights otherwise.
    if "weights_backbone" in inspect.signature(builder).parameters:
        arguments = {"weights_backbone": None, **arguments}
    return _called(f"torchvision:{name}", builder, {"weights": None, **arguments})


def _meant(name: str) -> str:
    """What the name of a file is for, where a model's stands."""
    suffix = Path(name).suffix
    if suffix == ".py":
        return f"; name the function in it that makes the model: {name}:make."
    return f"; did you mean ultralytics:{name}?" if suffix in (".pt", ".yaml", ".yml") else ""


def _timm(name: str, arguments: dict[str, Any]) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError(missing(f"timm:{name}", "timm", error)) from error
    if name.partition(".")[0] not in (known := timm.list_models()):
        raise ModelError(f"timm has no model {name!r}{_nearest(name, known)}")
    return _called(f"timm:{name}", timm.create_model, {"model_name": name, "pretrained": False, **arguments})


def _ultralytics(name: str, arguments: dict[str, Any]) -> Any:
    try:
        from ultralytics.models import YOLO
        from ultralytics.utils import ROOT
    except ImportError as error:
        raise ModelError(missing(f"ultralytics:{name}", "ultralytics", error)) from error
    path = Path(name)
    a_file = path.suffix in (".pt", ".yaml", ".yml")
    if not (a_file and path.is_file()):
        bare = path.stem if a_file else name
        known = sorted(_sized(p.stem) for p in Path(ROOT, "cfg", "models").rglob("*.yaml"))
        names = [n for family in known for n in family]
        if path.suffix == ".pt":
            random = f". ultralytics:{bare} makes it with random weights" if bare in names else ""
            raise ModelError(f"there is no file {name}, and nothing is downloaded{random}")
        if bare not in names:
            missing_ = f"there is no file {name}, and " if a_file else ""
            raise ModelError(f"{missing_}ultralytics has no model {bare!r}{_nearest(bare, names)}")
        name = f"{bare}.yaml"
    return _called(f"ultralytics:{name}", lambda **given: YOLO(name, **given).model, arguments)


def _sized(stem: str) -> list[str]:
    """Names of one YAML of ultralytics: "yolo11-seg" stands for five sizes, "yolo11n-seg" to "yolo11x-seg"."""
    family, dash, task = stem.partition("-")
    return [stem, *(f"{family}{size}{dash}{task}" for size in "nsmblx")]


def _huggingface(name: str, arguments: dict[str, Any]) -> Any:
    kind, config = _configured(name, arguments)
    return _called(f"hf:{name}", getattr(kind, "from_config", kind), {"config": config})


def _saved(folder: Path, arguments: dict[str, Any]) -> nn.Module:
    """The model of a folder that `save_pretrained` wrote, with the weights in it."""
    return load_folder(*_configured(str(folder), arguments), folder)


def _configured(name: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """The class of transformers, or its choice of one, and the configuration that a name or a folder means."""
    try:
        import transformers
    except ImportError as error:
        raise ModelError(missing(f"hf:{name}", "transformers", error)) from error
    if Path(name).exists():
        try:
            config = transformers.AutoConfig.from_pretrained(name, **arguments)
        except (OSError, ValueError) as error:
            raise ModelError(f"{name} is no configuration of Hugging Face: {str(error).splitlines()[0]}") from error
    else:
        known = list(transformers.CONFIG_MAPPING.keys())
        if name not in known:
            raise ModelError(
                f"there is no file or folder {name!r} and no model type of that name in transformers"
                f"{_nearest(name, known)}; a hub's model: download it and pass its folder"
            )
        config = _called(f"hf:{name}", transformers.CONFIG_MAPPING[name], arguments)
    names = getattr(config, "architectures", None) or ()
    own = next((getattr(transformers, n) for n in names if hasattr(transformers, n)), None)
    classifies = type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return own or (transformers.AutoModelForImageClassification if classifies else transformers.AutoModel), config


def _called(name: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What a factory returns."""
    try:
        return make(**arguments)
    except Exception as error:  # Whatever a factory may raise.
        given = ", ".join(f"{k}={v!r}" for k, v in arguments.items() if k != "config")
        raise ModelError(f"{name} cannot be made with ({given}): {type(error).__name__}: {error}") from error


_FAMILIES = {
    "torchvision": _torchvision,
    "timm": _timm,
    "ultralytics": _ultralytics,
    "hf": _huggingface,
}


def _nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean …?", or nothing."""
    close = get_close_matches(name, list(known), 3, 0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _dtype(name: str) -> torch.dtype:
    import torch

    kind = getattr(torch, name, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ModelError(f"dtype {name!r} is not known: float32, bfloat16 or float16")
    return kind


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device, dtype=torch.float32)
    except Exception as error:  # AssertionError, RuntimeError or NotImplementedError, as the build has it.
        raise ModelError(f"device {name!r} is not there: {str(error).splitlines()[0]}") from error
    return device
