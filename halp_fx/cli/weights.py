"""A file of weights -> into a model, whole, or an error that names the keys."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import ModelError, few

if TYPE_CHECKING:
    import torch
    from torch import nn

_INSIDE = ("state_dict", "model_state_dict", "model", "model_ema", "ema", "net", "weights")
"""Keys under which training scripts keep the weights in a checkpoint."""

_BEFORE = ("module.", "_orig_mod.", "model.")
"""What DDP, `torch.compile` and Lightning put before every name."""

_SHOWN = 5

_IN_FOLDERS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What `save_pretrained` writes beside config.json, in the order in which transformers looks for it."""


def weights_in(folder: Path) -> Path | None:
    """The file of weights in a folder of `save_pretrained`; None where there is only a configuration."""
    return next((folder / name for name in _IN_FOLDERS if (folder / name).is_file()), None)


def load_folder(kind: Any, config: Any, folder: Path) -> nn.Module:
    """A model of a class of transformers, with the weights of a folder that `save_pretrained` wrote.

    Read by transformers, which knows what an older version of it called them. Every tensor of the model must be there.

    Raises:
        ModelError: the weights cannot be read, or do not fit.
    """
    try:
        with _transformers_quiet():
            loaded, found = kind.from_pretrained(
                str(folder),
                config=config,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # They are in `found`, and named below.
                output_loading_info=True,
            )
    except Exception as error:  # Whatever transformers and safetensors raise for a damaged file.
        raise ModelError(f"the weights in {folder} cannot be read: {_first_line(error)}") from error
    shapes = [f"{k} is {'x'.join(map(str, was))}, the model's is {'x'.join(map(str, is_))}"
              for k, was, is_ in sorted(found["mismatched_keys"])]  # fmt: skip
    wrong = [*_listed("missing", sorted(found["missing_keys"])), *_listed("of another shape", shapes)]
    if wrong:
        raise ModelError(
            f"the weights in {folder} do not fit this {type(loaded).__name__}: {'; '.join(wrong)}. Leave out the --set "
            "that changes the network, or name a function that makes it with weights: file.py:function"
        )
    return cast("nn.Module", loaded)


@contextmanager
def _transformers_quiet() -> Iterator[None]:
    """Without its tables and bars: what is wrong is said in one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a file into a model; every key must fit.

    Raises:
        ModelError: the file is not there or not one of weights, or keys are missing, too many or of another shape.
    """
    import torch

    known = {name: t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    weights = _without_prefix(_read(path), set(known))
    missing = [k for k in known if k not in weights]
    extra = [k for k in weights if k not in known]
    shapes = [
        f"{k} is {_sizes(weights[k])}, the model's is {_sizes(known[k])}"
        for k in known
        if k in weights and weights[k].shape != known[k].shape
    ]
    wrong = [*_listed("missing", missing), *_listed("not in the model", extra), *_listed("of another shape", shapes)]
    if wrong:
        raise ModelError(
            f"{path} does not fit this {type(model).__name__} ({len(known)} tensors): " + "; ".join(wrong)
            + ". A model with another head: --set num_classes=…"
        )  # fmt: skip
    model.load_state_dict(weights, strict=False)  # What a module keeps beside tensors is no weight.


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name."""
    import torch

    if not path.is_file():
        what = "is a folder: name the file of weights in it" if Path(path).is_dir() else ""
        raise ModelError(f"{path} {what}" if what else f"there is no file {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ModelError(f"{path} is no file of safetensors: {error}") from error
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with Path(path).open("rb") as file:
            if not file.read(2).startswith((b"PK", b"\x80")):
                raise ModelError(f"{path} is no file of torch.save: it begins like none") from error
        raise ModelError(
            f"{path} holds more than weights (a pickled model?), and is not run here: save model.state_dict(), or, a "
            f"YOLO's, name the file as the model: ultralytics:{path}"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise ModelError(
            f"{path} is no file of torch.save, or it is damaged or cut off: {_first_line(error)}"
        ) from error
    return _state_dict(found, path)


def _state_dict(found: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state_dict in what a file holds."""
    import torch

    for key in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not any(isinstance(v, torch.Tensor) for v in found.values()):
        held = f"a {type(found).__name__}"
        if isinstance(found, Mapping):
            held = f"a mapping with the keys {', '.join(map(str, list(found)[:_SHOWN]))}"
        raise ModelError(f"{path} has no state_dict: it holds {held}")
    return {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)}


def _without_prefix(weights: dict[str, torch.Tensor], known: set[str]) -> dict[str, torch.Tensor]:
    """With the model's own names, where all names have another's before them."""
    while True:
        prefix = next((p for p in _BEFORE if weights and all(k.startswith(p) for k in weights)), None)
        if prefix is None or known & set(weights):
            return weights
        weights = {k.removeprefix(prefix): v for k, v in weights.items()}


def _listed(what: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {what} ({few(names, _SHOWN)})"] if names else []


def _sizes(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
