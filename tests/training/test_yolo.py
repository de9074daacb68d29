"""A YOLO of ultralytics is pruned inside its own trainer; what comes out is what its files hold."""

from __future__ import annotations

import zipfile

import pytest
import torch
import train_yolo
from recipes import scenes
from recipes.yolo import offline, pruned_trainer

import halp_fx

offline()
ultralytics = pytest.importorskip("ultralytics", reason="not installed: ultralytics")

TINY = """
nc: 7
backbone:
  - [-1, 1, Conv, [16, 3, 4]]
  - [-1, 1, Conv, [32, 3, 4]]
  - [-1, 1, C2f, [32, True]]
  - [-1, 1, Conv, [48, 3, 2]]
head:
  - [[2, 3], 1, Detect, [nc]]
"""
SHORT = ["--images", "16", "4", "--side", "64", "--batch", "4", "--dense-epochs", "1", "--epochs", "3", "--steps", "2"]
SHORT += ["--cost", "macs", "--budget", "0.5"]


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def shapes(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_a_yolo_is_pruned_saved_loaded_and_exported(tiny, tmp_path):
    import onnxruntime

    found = train_yolo.main([*SHORT, "--network", str(tiny.with_suffix("")), "--folder", str(tmp_path)])
    assert 0.4 < found["share"] <= 0.5
    best = tmp_path / "pruned" / "weights" / "best.pt"
    with zipfile.ZipFile(best) as file:
        assert not any(b"halp_fx" in file.read(name) for name in file.namelist())
    yolo, dense = ultralytics.YOLO(best), ultralytics.YOLO(tmp_path / "dense" / "weights" / "best.pt")
    count = sum(p.numel() for p in yolo.model.parameters())
    assert count < 0.8 * sum(p.numel() for p in dense.model.parameters())
    x = torch.rand(1, 3, 64, 64)
    again = halp_fx.load(tmp_path / "network.safetensors", lambda: dense.model)
    yolo.model.eval()
    with torch.no_grad():
        want = yolo.model(x)[0]
        torch.testing.assert_close(again(x)[0], want)
    session = onnxruntime.InferenceSession(found["file"])
    exported = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(exported), want, rtol=1e-3, atol=1e-3)
    # Trained further by the same trainer, it keeps its widths.
    data = str(tmp_path / "scenes" / "scenes_16_4_64_0.yaml")
    call = {"data": data, "imgsz": 64, "batch": 4, "epochs": 1, "plots": False, "project": str(tmp_path), "name": "on"}
    before = shapes(yolo.model)
    yolo.train(trainer=pruned_trainer(), **call)
    assert shapes(yolo.model) == before


def test_a_run_that_was_stopped_after_pruning_goes_on(tiny, tmp_path):
    data = str(scenes.write_yolo(tmp_path / "scenes", 8, 4, 64))
    call = {"data": data, "imgsz": 64, "batch": 4, "epochs": 3, "plots": False, "project": str(tmp_path), "nbs": 4}
    trainer = pruned_trainer(0.5, steps=1, latency="macs")

    def stop(trainer):
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    yolo = ultralytics.YOLO(tiny)
    yolo.add_callback("on_train_epoch_start", stop)
    with pytest.raises(KeyboardInterrupt):
        yolo.train(trainer=trainer, **call)
    pruned = shapes(yolo.trainer.model)
    again = ultralytics.YOLO(yolo.trainer.last)
    again.train(trainer=trainer, resume=True)
    assert again.trainer.start_epoch == 2
    assert again.trainer.pruner is None
    assert shapes(again.model) == shapes(again.trainer.model) == pruned


def test_a_pruned_yolo_is_not_given_other_classes(tiny, tmp_path):
    data = scenes.write_yolo(tmp_path / "scenes", 8, 4, 64)
    small = halp_fx.prune(ultralytics.YOLO(tiny).model, 0.5, torch.rand(1, 3, 64, 64), latency="macs", progress=False)
    two = data.with_name("two.yaml")
    two.write_text(data.read_text().partition("names")[0] + "names: {0: a, 1: b}\n")
    trainer = pruned_trainer()(overrides={"data": str(two), "model": str(tiny), "project": str(tmp_path)})
    with pytest.raises(SystemExit, match=r"tells 7 classes apart, .*two.yaml has 2"):
        trainer.get_model(cfg=small.yaml, weights=small, verbose=False)


def test_a_dense_network_that_was_stopped_is_not_taken_for_a_trained_one(tmp_path, monkeypatch):
    """Ultralytics writes `best.pt` from its first epoch on."""
    begun = []

    class Stopped:
        def __init__(self, name):
            self.name = name

        def train(self, **options):
            begun.append((self.name, options["name"]))
            raise KeyboardInterrupt

    monkeypatch.setattr(ultralytics, "YOLO", Stopped)
    best = tmp_path / "dense" / "weights" / "best.pt"
    best.parent.mkdir(parents=True)
    best.touch()
    call = ["--images", "1", "1", "--side", "64", "--folder", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        train_yolo.main(call)
    assert begun == [("yolo11n.yaml", "dense")]
    (tmp_path / "dense.json").write_text('{"data": "scenes", "network": "yolo11m"}')
    with pytest.raises(
        SystemExit, match=r"dense.json is of a run with other settings \(--network yolo11m, now yolo11n"
    ):
        train_yolo.main(call)


def test_data_that_is_not_there_is_said(tmp_path):
    with pytest.raises(SystemExit, match=r"there is no none.yaml"):
        train_yolo.main(["--data", "none.yaml", "--folder", str(tmp_path)])


def test_masks_that_would_leave_files_of_dense_widths_are_refused():
    with pytest.raises(halp_fx.TrainingError, match=r"mode='mask'.*files have the dense widths"):
        pruned_trainer(0.5, mode="mask")
