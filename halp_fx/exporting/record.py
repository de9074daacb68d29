"""What came of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Export:
    """A file that computes what the network does.

    Attributes:
        path: the file.
        exporter: "torch.onnx, dynamo", "torch.onnx, TorchScript", "torch.export", or "onnxruntime, static int8".
        dynamic: whether it takes any batch size; otherwise that of the example inputs alone.
        batches: batch sizes at which the file's outputs were compared with the network's; none where the inputs have no
            such dimension, as a detector's list of images.
        deviation: the largest difference of an output relative to that output's largest value.
        size: bytes, with the file that holds the weights of a large network.
        notes: why an earlier choice of exporter, or a dynamic batch, did not work.
        file_ms, reference_ms: times of the file and of what it is compared with, in turn: for `export` the file of the
            dense network on the example inputs (None where that was not given), for `quantize` the file before.
        share: `file_ms` of `reference_ms`, the median over the turns.
    """

    path: Path
    exporter: str
    dynamic: bool
    batches: tuple[int, ...]
    deviation: float
    size: int
    notes: tuple[str, ...] = ()
    file_ms: float | None = None
    reference_ms: float | None = None
    share: float | None = None

    def __str__(self) -> str:
        sizes = (
            f" at batch size{'s' * (len(self.batches) > 1)} {' and '.join(map(str, self.batches))}"
            if self.batches
            else ""
        )
        apart = f"at most {self.deviation:.1e} apart" if self.deviation else "equal"
        batch = f"{'any' if self.dynamic else 'one'} batch size"
        parts = [
            f"{self.path}: {self.size / 1e6:.2f} MB by {self.exporter}, for {batch}",
            f"compared with the network{sizes}: {apart}",
        ]
        if self.share is not None:
            medians = f"medians {self.file_ms:.3g} and {self.reference_ms:.3g} ms"
            other = "the file before" if self.exporter.startswith("onnxruntime") else "the dense network's file"
            parts.append(f"takes {self.share:.1%} of the time of {other}, timed in turn ({medians})")
        return "\n".join((*parts, *(f"note: {note}" for note in self.notes)))
