"""`halp-fx info`."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from shutil import which

from . import options
from .guarding import guarded

_EXTRAS = (
    "torchvision",
    "timm",
    "transformers",
    "ultralytics",
    "matplotlib",
    "triton",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
)


@guarded(examples=("info", "info --json"))
def info(as_json: options.Json = False) -> None:
    """Say what there is: versions, devices, runtimes that can be used here, latency tables.

    For the report of an error, too."""
    from .output import Output

    output = Output(as_json)
    import torch

    from ..fitting import Column, tabled
    from ..latency.fingerprint import RUNTIMES, Fingerprint
    from ..latency.store import cache_directory
    from ..version import __version__

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    compiler = next(filter(None, map(which, (os.environ.get("CXX", "g++"), "clang++", "cl"))), None)
    there = {
        "cudagraph": torch.cuda.is_available(),
        "onnxruntime": all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
        **dict.fromkeys(("inductor", "inductor-frozen", "aoti"), compiler is not None),
    }
    runtimes = [r for r in RUNTIMES if there.get(r, True)]
    here = Fingerprint.of(torch.device(devices[-1]))
    tables = sorted(cache_directory().glob("*.json"))
    found: dict[str, object] = {
        "halp_fx": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        **{name: _version(name) for name in _EXTRAS},
        "devices": ", ".join(devices),
        "device": here.device,
        "threads": torch.get_num_threads(),
        "C++ compiler": compiler or "none: inductor and aoti need one",
        "runtimes": ", ".join(runtimes),
        "timer": here.timer,
        "latency tables": f"{len(tables)} in {cache_directory()}",
    }
    output.say(tabled((Column(""), Column.words("")), [(what, f"{value}") for what, value in found.items()]))
    output.result(found)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
