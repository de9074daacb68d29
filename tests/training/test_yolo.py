"""A YOLO of ultralytics is pruned inside its own trainer; what comes out is what its files hold."""

from __future__ import annotations

import zipfile

import pytest
import torch
import train_yolo
from recipes import scenes
from recipes.faults import DataError
from recipes.yolo import detector, offline, pruned_trainer

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


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_each_kind_of_file_is_exported(kind, tiny, tmp_path):
    """TorchScript ended in an assertion of ultralytics, after all of the training."""
    yolo = ultralytics.YOLO(tiny)
    yolo.save(tmp_path / "tiny.pt")
    file = train_yolo.exported(ultralytics.YOLO(tmp_path / "tiny.pt"), kind, 64)
    found = ultralytics.YOLO(file, task="detect").predict(torch.rand(1, 3, 64, 64), imgsz=64, verbose=False)
    assert found[0].orig_shape == (64, 64)


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

    yolo = ultralytics.YOLO(tiny)
    yolo.add_callback("on_train_epoch_start", stopping_at(2))
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
    two = with_classes(data, "a", "b")
    trainer = pruned_trainer()(overrides={"data": str(two), "model": str(tiny), "project": str(tmp_path)})
    with pytest.raises(SystemExit, match=r"tells 7 classes apart, .*2.yaml has 2"):
        trainer.get_model(cfg=small.yaml, weights=small, verbose=False)


def stopping_at(epoch):
    def stop(trainer):
        if trainer.epoch == epoch:
            raise KeyboardInterrupt

    return stop


def test_a_run_of_another_trainer_is_pruned_in_the_epochs_that_are_left(tiny, tmp_path):
    """It was taken for one that had been pruned."""
    data = str(scenes.write_yolo(tmp_path / "scenes", 8, 4, 64))
    call = {"data": data, "imgsz": 64, "batch": 4, "epochs": 4, "plots": False, "project": str(tmp_path), "nbs": 4}
    yolo = ultralytics.YOLO(tiny)
    yolo.add_callback("on_train_epoch_start", stopping_at(1))
    with pytest.raises(KeyboardInterrupt):
        yolo.train(**call)
    again = ultralytics.YOLO(yolo.trainer.last)
    again.train(trainer=pruned_trainer(0.5, steps=1, latency="macs"), resume=True)
    assert again.trainer.start_epoch == 1
    assert again.trainer.pruner.model.halp.met
    small = shapes(again.model)
    assert small == shapes(again.trainer.pruner.model) != shapes(yolo.trainer.model)


def with_classes(data, *names):
    told = data.with_name(f"{len(names)}.yaml")
    told.write_text(data.read_text().partition("names")[0] + f"names: {dict(enumerate(names))}\n")
    return told


def test_a_dense_yolo_of_other_classes_is_built_for_those_of_the_data(tiny, tmp_path):
    """It was taken for a pruned one, and refused: weights of COCO could be pruned on COCO alone."""
    two = with_classes(scenes.write_yolo(tmp_path / "scenes", 8, 4, 64), "a", "b")
    trainer = pruned_trainer()(overrides={"data": str(two), "model": str(tiny), "project": str(tmp_path)})
    dense = ultralytics.YOLO(tiny).model
    made = trainer.get_model(cfg=dense.yaml, weights=dense, verbose=False)
    assert made.model[-1].nc == 2
    assert torch.equal(made.model[0].conv.weight, dense.model[0].conv.weight)
    assert detector(str(tiny), 2)[0].model[-1].nc == 2


def test_the_best_counts_from_pruning_on_where_nothing_is_saved_in_between(tiny, tmp_path, monkeypatch):
    """With save=False the dense network was the best one, and patience with it ended the training in between."""
    data = str(scenes.write_yolo(tmp_path / "scenes", 8, 4, 64))
    call = {"data": data, "imgsz": 64, "batch": 4, "epochs": 5, "plots": False, "project": str(tmp_path), "nbs": 4}
    fitness = iter((0.9, 0.8, 0.7, 0.3, 0.2))
    found = ultralytics.engine.validator.BaseValidator.__call__

    def told(self, trainer=None, model=None):
        return found(self, trainer, model) | {"fitness": next(fitness)}

    monkeypatch.setattr(ultralytics.engine.validator.BaseValidator, "__call__", told)
    yolo = ultralytics.YOLO(tiny)
    yolo.train(trainer=pruned_trainer(0.5, share=0.7, steps=2, latency="macs"), save=False, patience=2, **call)
    assert yolo.trainer.pruner.decisions == 2
    assert yolo.trainer.best_fitness == 0.7  # Of the third epoch, in which pruning is over.
    assert yolo.trainer.epoch == 4


def test_networks_and_trainings_of_another_kind_are_said(tiny, tmp_path):
    data = str(scenes.write_yolo(tmp_path / "scenes", 1, 1, 64))
    call = {"data": data, "model": str(tiny), "project": str(tmp_path)}
    with pytest.raises(
        halp_fx.TrainingError, match=r"the task 'segment', and DetectionTrainer trains detectors.*base="
    ):
        pruned_trainer(0.5)(overrides=call | {"task": "segment"})
    with pytest.raises(halp_fx.TrainingError, match=r"distill_model compares features.*prune without it"):
        pruned_trainer(0.5)(overrides=call | {"distill_model": str(tiny)})
    with pytest.raises(halp_fx.BudgetError, match="budget 'half' of macs is malformed"):
        pruned_trainer("half", latency="macs")


def test_a_compiled_yolo_is_pruned(tiny, tmp_path, monkeypatch):
    def compiled(model, **_):
        return torch.compile(model, backend="eager")

    monkeypatch.setattr(ultralytics.engine.trainer, "attempt_compile", compiled)
    data = str(scenes.write_yolo(tmp_path / "scenes", 8, 4, 64))
    call = {"data": data, "imgsz": 64, "batch": 4, "epochs": 2, "plots": False, "project": str(tmp_path), "nbs": 4}
    yolo = ultralytics.YOLO(tiny)
    yolo.train(trainer=pruned_trainer(0.5, steps=1, latency="macs"), compile=True, **call)
    assert shapes(yolo.model) == shapes(yolo.trainer.pruner.model) != shapes(ultralytics.YOLO(tiny).model)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (["--network", "yolo11n-seg"], SystemExit, "for the task 'segment', and this script prunes detectors"),
        (["--network", "yolo99n"], SystemExit, r"yolo99n.yaml is no network of ultralytics.YOLO: FileNotFoundError"),
        (["--network", "rtdetr-l"], SystemExit, r"rtdetr-l.yaml is no network of ultralytics.YOLO: NotImpl"),
        (["--weights", "none.pt"], SystemExit, "there is no none.pt"),
        (["--data", "none.yaml"], DataError, "none.yaml cannot be used: FileNotFoundError"),
        (["--data", "half.yaml"], DataError, "half.yaml cannot be used: .*'val:' key missing"),
        (["--budget", "half"], halp_fx.BudgetError, "budget 'half' of macs is malformed"),
        (["--budget", "0.0001"], halp_fx.InfeasibleError, "cannot be reached"),
        (["--cost", "money"], halp_fx.BudgetError, "money"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_trained(call, error, message, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.yaml").write_text("train: images\nnames: [a]\n")
    monkeypatch.setattr(ultralytics.YOLO, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(error, match=message):
        train_yolo.main([*SHORT, "--network", "tiny", "--folder", str(tmp_path / "run"), *call])


def test_a_dense_network_that_was_stopped_is_not_taken_for_a_trained_one(tmp_path, monkeypatch):
    """Ultralytics writes `best.pt` from its first epoch on."""
    begun = []

    class Stopped(ultralytics.YOLO):
        def train(self, **options):
            begun.append((self.model_name, options["name"]))
            raise KeyboardInterrupt

    monkeypatch.setattr(ultralytics, "YOLO", Stopped)
    best = tmp_path / "dense" / "weights" / "best.pt"
    best.parent.mkdir(parents=True)
    best.touch()
    call = ["--images", "1", "1", "--side", "64", "--cost", "macs", "--folder", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        train_yolo.main(call)
    assert begun == [("yolo11n.yaml", "dense")]
    (tmp_path / "dense.json").write_text('{"data": "scenes", "network": "yolo11m"}')
    with pytest.raises(
        SystemExit, match=r"dense.json is of a run with other settings \(--network yolo11m, now yolo11n"
    ):
        train_yolo.main(call)


def test_masks_that_would_leave_files_of_dense_widths_are_refused():
    with pytest.raises(halp_fx.TrainingError, match=r"mode='mask'.*files have the dense widths"):
        pruned_trainer(0.5, mode="mask")
