"""What a time depends on beside the layer: device, software and setting."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import LatencyError
from .allocator import memory_setting

_BACKENDS: Any = torch.backends
"""Its modules replace themselves by objects, which have more attributes."""

RUNTIMES = ("eager", "inductor", "inductor-frozen", "cudagraph", "aoti", "onnxruntime")


def kind_of(runtime: str) -> tuple[str, str]:
    """What executes a network, and in which mode of `torch.compile` ("": its default): "inductor:max-autotune".

    Raises:
        LatencyError: it is not known.
    """
    kind, _, mode = runtime.partition(":") if isinstance(runtime, str) else ("", "", "")
    if kind not in RUNTIMES or (mode and not kind.startswith("inductor")):
        raise LatencyError(
            f"runtime {runtime!r} is not known: {', '.join(RUNTIMES)}; those of inductor with a mode of torch.compile "
            "if need be, such as 'inductor:max-autotune'. Other engines (TensorRT, OpenVINO) are not timed: "
            "halp_fx.export writes the file that they take, halp_fx.CallableCost budgets in times that you took there"
        )
    return kind, mode


def check_device(runtime: str, device: torch.device) -> None:
    """Raises LatencyError where a device does not have a runtime."""
    if kind_of(runtime)[0] == "cudagraph" and device.type != "cuda":
        raise LatencyError(
            f"runtime 'cudagraph' needs a CUDA device, not {device}: move the model and its inputs there"
        )


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Device and setting of a latency table. Dtype and memory format stand in each layer's signature.

    Attributes:
        device: name of the processor or GPU, with its memory or core count.
        driver: of the GPU; on a CPU the instruction set that torch uses.
        torch_version: with the CUDA version it was built for. cudnn: version, "" on a CPU.
        runtime: as `kind_of` takes it.
        threads: CPU threads; 0 on a GPU.
        timer: how times were taken.
        settings: switches that change which kernels run (TF32, cuDNN benchmark, deterministic; on a CPU oneDNN's).
    """

    device: str
    driver: str
    torch_version: str
    cudnn: str
    runtime: str
    threads: int
    timer: str
    settings: str = ""

    @classmethod
    def of(cls, device: torch.device | str, runtime: str = "eager", threads: int | None = None) -> Fingerprint:
        """The fingerprint of a device on this machine, now."""
        device = torch.device(device)
        if device.type == "cuda":
            return cls._cuda(device, runtime)
        threads = threads or torch.get_num_threads()
        return cls(
            device=_cpu_name() if device.type == "cpu" else device.type,
            driver=torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else "",
            torch_version=torch.__version__,
            cudnn="",
            runtime=runtime,
            threads=threads,
            timer=_cpu_timer(threads),
            settings=_cpu_settings(),
        )

    @classmethod
    def _cuda(cls, device: torch.device, runtime: str) -> Fingerprint:
        # `allow_tf32`, the earlier name of these two, cannot be read where the caller has set the later one.
        switches = {
            "tf32": _BACKENDS.cudnn.conv.fp32_precision == "tf32",
            "matmul tf32": _BACKENDS.cuda.matmul.fp32_precision == "tf32",
            "cudnn benchmark": torch.backends.cudnn.benchmark,
            "deterministic": torch.backends.cudnn.deterministic,
        }
        graph = runtime == "cudagraph"
        return cls(
            device=_cuda_name(device),
            driver=_cuda_driver(),
            torch_version=torch.__version__,
            cudnn=str(torch.backends.cudnn.version() or ""),
            runtime=runtime,
            threads=0,
            timer="CUDA graph, L2 warm, median" if graph else "CUDA events, L2 flushed, median",
            settings=", ".join(name for name, on in switches.items() if on),
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Fingerprint:
        """Inverse of `asdict`.

        Raises:
            TypeError, KeyError: a field is missing or of the wrong type.
        """
        found = {f.name: data[f.name] for f in fields(cls)}
        if not all(isinstance(v, int if n == "threads" else str) for n, v in found.items()):
            raise TypeError(f"a field of the header has the wrong type: {found}")
        return cls(**found)

    def differences(self, other: Fingerprint) -> dict[str, tuple[object, object]]:
        """Fields that differ: name -> (here, in `other`)."""
        mine, theirs = asdict(self), asdict(other)
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    @property
    def file_name(self) -> str:
        """A file name of its own for every fingerprint, that still says what it is."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        words = "".join(c if c.isalnum() else "-" for c in self.device.split(",")[0])
        return f"{words[:40].strip('-')}-{self.runtime.replace(':', '-')}-{digest}.json"


def devices_here() -> frozenset[str]:
    """What tables call the devices of this machine."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return frozenset((_cpu_name(), *(_cuda_name(torch.device("cuda", index)) for index in range(count))))


def _cuda_name(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory >> 20} MiB"


def _cpu_settings() -> str:
    """What is set otherwise than PyTorch has it: oneDNN left out, or rounding what it multiplies
    (`torch.set_float32_matmul_precision`)."""
    mkldnn = _BACKENDS.mkldnn
    if not mkldnn.enabled:
        return "no mkldnn"
    rounded = {"conv": mkldnn.conv.fp32_precision, "matmul": mkldnn.matmul.fp32_precision}
    return ", ".join(f"{name} {how}" for name, how in rounded.items() if how not in ("none", "ieee"))


def _cpu_timer(threads: int) -> str:
    clock = "thread CPU" if threads == 1 else "wall"
    return ", ".join(filter(None, (f"{clock} time", "blocks", "median", "warm caches", memory_setting())))


_CPUS, _BOARD = Path("/proc/cpuinfo"), Path("/proc/device-tree/model")


@cache
def _cpu_name() -> str:
    name = platform.processor() or platform.machine()
    if _BOARD.exists():  # ARM's cores have no names: "Raspberry Pi 5 Model B Rev 1.0".
        name = _BOARD.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    elif _CPUS.exists():
        rows: dict[str, str] = {}
        for line in _CPUS.read_text(encoding="utf-8", errors="replace").splitlines():
            name_of_field, _, value = line.partition(":")
            rows[name_of_field.strip()] = value.strip()
        # A virtual machine may hide the model's name; family and model number still tell processors apart.
        name = f"{rows.get('model name', name)} family {rows.get('cpu family', '?')} model {rows.get('model', '?')}"
    return f"{name}, {torch.multiprocessing.cpu_count()} cores"


def _cuda_driver() -> str:
    """The CUDA version that the driver supports, e.g. "13000"; "" where torch does not tell."""
    version = getattr(torch._C, "_cuda_getDriverVersion", None)
    return "" if version is None else str(version())
