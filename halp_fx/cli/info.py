"""`halp-fx info`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

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
    "onnxruntime",
)


@guarded(examples=("info", "info --json"))
def info(as_json: options.Json = False) -> None:
    """Say what there is: versions, device, runtimes, latency tables. For an error report, too."""
    from .output import Output

    output = Output(as_json)
    import torch
    from tabulate import tabulate

    from ..latency.fingerprint import RUNTIMES, Fingerprint
    from ..latency.store import cache_directory
    from ..version import __version__

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    runtimes = [r for r in RUNTIMES if r != "cudagraph" or torch.cuda.is_available()]
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
        "runtimes": ", ".join(runtimes),
        "timer": here.timer,
        "latency tables": f"{len(tables)} in {cache_directory()}",
    }
    output.say(tabulate(list(found.items()), tablefmt="plain", disable_numparse=True))
    output.result(found)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
