"""What `quantize` is given by mistake is said in words that name the batch, what the file takes, and the remedy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import halp_fx
from halp_fx import ExportError

pytest.importorskip("onnxruntime")

X = torch.rand(2, 3, 12, 12)
PAIR = torch.rand(2, 4)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.layer(y)


class Fixed(nn.Module):
    """One that is exported for one batch size only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.reshape(2, 4))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    made = {"images": (images, X), "two": (Two(), (PAIR, PAIR)), "fixed": (Fixed(), PAIR)}
    for name, (model, inputs) in made.items():
        halp_fx.export(model.eval(), folder / f"{name}.onnx", inputs)
    (folder / "junk.onnx").write_bytes(b"hello")
    return folder


TAKES = r"the file takes float32 of shape \(any, 3, 12, 12\): "


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (
            "images",
            [X, torch.rand(2, 3, 16, 16)],
            rf"batch 1 .*\(2, 3, 16, 16\) for 'input', and {TAKES}resize",
        ),
        ("images", [X.double()], f"batch 0 .* is float64 .*{TAKES}convert the batches, by tensor.to"),
        ("images", [X[0]], f"{TAKES}one sample of a data set"),
        ("images", [X[:0]], f"{TAKES}leave empty batches out"),
        ("images", [X.flatten(1)], f"{TAKES}pass batches such as"),
        ("images", [((X, X), 0)], r"holds 2 tensors, and .*takes 'input': pass batches"),
        ("images", [{"pixels": X}], r"holds 'pixels', and .*takes 'input'"),
        ("images", [X.numpy()], r"torch\.from_numpy makes tensors"),
        ("images", [(X, X, 0)], r"data yields a tuple of 3 .*pass batches of \(inputs, target\)"),
        ("images", [None], "data yields None"),
        ("two", [(PAIR, 0)], r"holds 1 tensor, and .* takes 'x', 'y'"),
        ("fixed", [PAIR, PAIR[:1]], r"batch 1 .*takes float32 of shape \(2, 4\): pass batches of 2 \(drop_last"),
        ("junk", [X], r"onnxruntime cannot load it \(.*\); pass a file that halp_fx\.export wrote"),
    ],
)
def test_what_does_not_fit_the_file_is_said(name, data, words, files, tmp_path):
    with pytest.raises(ExportError, match=words):
        halp_fx.quantize(files / f"{name}.onnx", tmp_path / "q.onnx", data)
    assert not list(tmp_path.iterdir())


def test_a_file_in_8_bits_is_not_quantised_again(files, tmp_path):
    halp_fx.quantize(files / "two.onnx", tmp_path / "q.onnx", [((PAIR, PAIR), 0)])
    with pytest.raises(ExportError, match=r"q\.onnx computes in 8 bits already"):
        halp_fx.quantize(tmp_path / "q.onnx", tmp_path / "again.onnx", [((PAIR, PAIR), 0)])


def test_what_onnxruntime_cannot_do_has_a_remedy(files, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("halp_fx.exporting.quantizing._write", fails)
    with pytest.raises(ExportError, match=r"RuntimeError: no such operator\nonnxruntime says so .* another opset"):
        halp_fx.quantize(files / "images.onnx", tmp_path / "q.onnx", [X])
