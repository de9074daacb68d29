"""Recipes run from one command, go on where they were stopped, and say what is wrong with what they are given."""

from __future__ import annotations

import argparse
import json

import draw_detectors
import pytest
import torch
import torchvision
import train_classifier
import train_detector
from comparing import networks
from PIL import Image
from recipes import boxes, checkpoints, detectors, images, runs, scenes
from recipes.faults import DataError, need
from recipes.processes import Job

import halp_fx

ALONE = Job(0, 1, torch.device("cpu"))
SHORT = ["--network", "inverted", "--images", "96", "46", "--batch", "16", "--dense-epochs", "1", "--epochs", "2"]
SHORT += ["--steps", "2", "--interval", "3", "--cost", "macs", "--budget", "0.5"]


def test_a_classifier_is_pruned_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    whole = train_classifier.main([*SHORT, "--folder", str(tmp_path / "a")])
    assert 0.4 < whole["share"] <= 0.5
    assert len(whole["history"]) == 2
    kept = torch.load(tmp_path / "a" / "network.pt")
    model = networks.NETWORKS["inverted"](46)
    small = halp_fx.rewrite(model, halp_fx.Plan.from_json(kept["plan"]), torch.randn(1, 3, 32, 32))
    small.load_state_dict(kept["weights"])
    assert json.loads((tmp_path / "a" / "result.json").read_text())["share"] == whole["share"]
    epoch = train_classifier.Training.epoch

    def stopped(self, number, *rest):
        if number == 1 and rest:
            raise KeyboardInterrupt
        epoch(self, number, *rest)

    monkeypatch.setattr(train_classifier.Training, "epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_classifier.main([*SHORT, "--folder", str(tmp_path / "b")])
    monkeypatch.undo()
    with pytest.raises(SystemExit, match=r"other settings \(--budget 0.5, now 0.4\)"):
        train_classifier.main([*SHORT, "--folder", str(tmp_path / "b"), "--budget", "0.4"])
    train_classifier.main([*SHORT, "--folder", str(tmp_path / "b")])
    again = torch.load(tmp_path / "b" / "network.pt")
    assert again["plan"] == kept["plan"]
    assert all(torch.equal(t, again["weights"][n]) for n, t in kept["weights"].items())


class Counting(runs.Run):
    """Each epoch adds one to the weights; the third is where it is stopped, at first."""

    parts = ("model",)
    stops = True

    def epoch(self, number):
        if number == 2 and self.stops:
            raise KeyboardInterrupt
        torch.nn.init.constant_(self.model.weight, self.model.weight.mean().item() + 1)
        self.ended({"epoch": number + 1})


def test_a_dense_network_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    given = argparse.Namespace(folder=tmp_path, weights=None, data="none", dense_epochs=4)
    for stops in (True, False):
        model = torch.nn.Linear(2, 2)
        torch.nn.init.zeros_(model.weight)
        monkeypatch.setattr(Counting, "stops", stops)
        try:
            runs.dense(given, ALONE, model, lambda n, model=model: Counting(None, ALONE, model, n), lambda run: None)
        except KeyboardInterrupt:
            with pytest.raises(SystemExit, match=r"dense_checkpoint.pt is of .*\(processes 1, now 2\)"):
                checkpoints.read(tmp_path / "dense_checkpoint.pt", {"processes": "2"})
    assert model.weight.mean() == 4
    assert [path.name for path in tmp_path.iterdir()] == ["dense.pt"]
    assert "the dense network: 4 epochs, after 2 that were done before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped: the same command goes on"),
        (DataError("0.png cannot be used"), 1, "DataError: 0.png cannot be used"),
        (halp_fx.BudgetError("no such unit"), 1, "BudgetError: no such unit"),
    ],
)
def test_what_ends_a_recipe_is_said_in_a_line(error, code, message, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        runs.started(main)
    told = capsys.readouterr().err or str(ended.value)
    assert message in told
    assert code == (ended.value.code if isinstance(ended.value.code, int) else 1)


def drawn(root):
    """Where the only scenes of a folder lie."""
    (found,) = root.glob("scenes_*/VOCdevkit/VOC2012")
    return found


def folder(root, classes, count=3):
    for part, names in classes.items():
        for name in names:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 40), (number * 40, 90, 10)).save(root / part / name / f"{number}.png")
    return root


def test_folders_as_of_imagenet(tmp_path):
    root = folder(tmp_path / "images", {"train": ("cat", "dog"), "val": ("cat", "dog")})
    call = ["--data", str(root), "--network", "inverted", "--epochs", "1", "--dense-epochs", "1", "--batch", "2"]
    call += ["--steps", "1", "--interval", "2", "--cost", "macs", "--workers", "0", "--folder", str(tmp_path / "run")]
    assert train_classifier.main(call)["share"] <= 0.5


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "there is no"),
        ({"train": ("cat",)}, r"there is no .*val"),
        ({"train": ("cat",), "val": ("dog",)}, "'cat' is in one of them only"),
        ({"train": ("cat",), "val": ("cat",)}, "less than one batch of 128"),
    ],
)
def test_folders_that_are_misshapen_are_said(tmp_path, classes, message):
    root = folder(tmp_path / "images", classes)
    with pytest.raises(SystemExit, match=message):
        train_classifier.main(["--data", str(root), "--workers", "0", "--folder", str(tmp_path / "run")])


def test_a_class_without_images_and_an_image_that_is_none_are_named(tmp_path):
    root = folder(tmp_path / "images", {"train": ("cat", "dog"), "val": ("cat", "dog")})
    (root / "val" / "dog" / "1.png").write_bytes(b"no image")
    data = images.load(str(root), tmp_path, 2, ALONE, 0, 0, (0, 0))
    # Ultralytics, where a test has imported it, makes PIL ask for a package more.
    with pytest.raises(DataError, match=r"dog/1.png cannot be used: (UnidentifiedImageError|ModuleNotFoundError)"):
        list(data.test())
    for path in (root / "train" / "dog").iterdir():
        path.unlink()
    with pytest.raises(SystemExit, match=r"one folder of images for every class: .*dog"):
        images.load(str(root), tmp_path, 2, ALONE, 0, 0, (0, 0))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--network", "inverted", "--weights", "none.pt"], "none.pt cannot be read"),
        (["--network", "inverted", "--weights", "other.pt"], "other.pt has no weights of this network"),
        (["--network", "inverted", "--weights", "text.pt"], "text.pt cannot be read"),
        (["--network", "resnet18", "--weights", "none.pt"], "--network resnet18 --weights none.pt, for 46 classes"),
        (["--network", "resnet18", "--weights", "DEFAULT"], "'num_classes' expected value 1000 but got 46"),
        (["--network", "resnet19"], "--network resnet19, for 46 classes: Unknown model"),
        (["--network", "inverted"], r"dense.pt is of a run with other settings .*--dense-epochs 7, now 1;"),
    ],
)
def test_weights_that_do_not_fit_are_said(tmp_path, monkeypatch, asked, message):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1)}, "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "run").mkdir()
    torch.save({"settings": {"dense_epochs": "7"}, "weights": {}}, "run/dense.pt")
    before = (tmp_path / "run" / "dense.pt").read_bytes()
    with pytest.raises(SystemExit, match=message):
        train_classifier.main([*SHORT, "--folder", "run", *asked])
    assert (tmp_path / "run" / "dense.pt").read_bytes() == before


def test_a_package_that_is_missing_is_said_at_once():
    with pytest.raises(SystemExit, match="this needs no_such_package: python -m pip install no_such_package"):
        need("torch", "no_such_package")


SCENES = ["--images", "8", "4", "--side", "96", "--batch", "4", "--dense-epochs", "1", "--epochs", "1"]
SCENES += ["--steps", "1", "--interval", "2", "--cost", "macs"]


def test_scenes_are_varied_only_where_that_is_asked(tmp_path):
    for augment in (False, True):
        data = boxes.load("scenes", tmp_path, 2, 64, ALONE, 0, 0, (2, 1), augment=augment)
        found = {tuple(map(float, box)) for _, targets in data.epoch(0) for one in targets for box in one["boxes"]}
        voc = torchvision.datasets.VOCDetection(str(drawn(tmp_path).parents[1]), "2012", "train")
        told = [thing["bndbox"] for _, one in voc for thing in one["annotation"]["object"]]
        as_drawn = {(int(b["xmin"]) - 1.0, int(b["ymin"]) - 1.0, float(b["xmax"]), float(b["ymax"])) for b in told}
        assert (found == as_drawn) is not augment


@pytest.mark.parametrize(("recipe", "call"), [(train_detector, SCENES), (train_classifier, SHORT)])
def test_a_budget_out_of_reach_costs_no_epoch(recipe, call, tmp_path, monkeypatch):
    epochs = []
    monkeypatch.setattr(recipe.Training, "epoch", lambda self, number, *_: epochs.append(number))
    with pytest.raises(halp_fx.InfeasibleError, match=r"cannot be reached: the smallest .* takes .* of dense"):
        recipe.main([*call, "--budget", "0.001", "--folder", str(tmp_path)])
    assert not epochs


@pytest.mark.parametrize(
    ("asked", "cost"),
    [
        ([], "macs"),
        (["--network", "ssd300_vgg16"], "macs"),
        (["--cost", "latency"], None),
        (["--data", "voc"], None),
        (["--data", "voc", "--cost", "macs"], "macs"),
    ],
)
def test_a_budget_is_of_the_time_unless_pictures_are_small(asked, cost):
    assert train_detector.options(asked).cost == cost


def test_the_published_recipe_for_pascal_voc_is_shortened(tmp_path, monkeypatch):
    """SSD512 with a cut ResNet by soft masks, here with one block a stage; the stem stays."""
    resnet = torchvision.models.resnet
    monkeypatch.setattr(
        torchvision.models, "resnet50", lambda weights: resnet.ResNet(resnet.Bottleneck, [1] * 4, width_per_group=16)
    )
    call = ["--recipe", "smcp", "--backbone", "none", "--images", "4", "2", "--side", "64", "--batch", "4"]
    call += ["--epochs", "2", "--interval", "0", "--cost", "macs", "--folder", str(tmp_path)]
    found = train_detector.main(call)
    assert found["share"] <= 0.5
    assert found["dense"] is None
    kept = torch.load(tmp_path / "network.pt")
    assert kept["weights"]["backbone.stem.0.weight"].shape == (64, 3, 7, 7)
    dense = detectors.make(detectors.SSD512, 8, 64, None).eval()
    assert [tuple(m.shape[2:]) for m in dense.backbone(torch.rand(1, 3, 128, 128)).values()] == [
        (n, n) for n in (16, 8, 4, 2, 1, 1, 1)
    ]
    count = sum(p.numel() for p in dense.parameters())
    assert sum(t.numel() for n, t in kept["weights"].items() if "running" not in n) < 0.8 * count


def test_runs_are_put_side_by_side(tmp_path):
    for name, share, precision in (("whole", 1.0, 0.5), ("half", 0.5, 0.45)):
        (tmp_path / name).mkdir()
        told = {"unit": "MACs", "cost": 2e9 * share, "share": share, "precision": {"map_50": precision, "map": 0.3}}
        (tmp_path / name / "result.json").write_text(json.dumps(told))
    runs = [str(tmp_path / name) for name in ("whole", "half")]
    lines = draw_detectors.main([*runs, "--plot", str(tmp_path / "plot.svg")]).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["half", "1e+09 MACs", "50.0%", "45.0", "30.0"]
    assert (tmp_path / "plot.svg").read_text().count("<path") > 10
    with pytest.raises(SystemExit, match=r"there is no .*result.json"):
        draw_detectors.main([str(tmp_path / "none")])


def test_the_published_rates():
    """Of the epochs that are published, in steps of one."""
    rates = {epoch: train_detector.stairs(epoch / 800, 0) for epoch in (25, 50, 599, 600, 700, 740, 770, 799)}
    assert rates == {25: 0.5, 50: 1, 599: 1, 600: 3 / 8, 700: 1 / 8, 740: 1 / 20, 770: 1 / 200, 799: 1 / 200}


def coco(root, scenes):
    """The layout of COCO, of scenes as `(things, size)`; categories have gaps, as there."""
    for part in ("train2017", "val2017"):
        (root / part).mkdir(parents=True)
        told = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]}
        for number, (things, size) in enumerate(scenes):
            Image.new("RGB", size, (90, 90, number)).save(root / part / f"{number}.jpg")
            told["images"].append({"id": number, "file_name": f"{number}.jpg", "width": size[0], "height": size[1]})
            for kind, box, crowd in things:
                one = {"id": len(told["annotations"]), "image_id": number, "category_id": kind, "bbox": box}
                told["annotations"].append(one | {"iscrowd": crowd, "area": box[2] * box[3]})
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(told))
    return root


def test_coco_is_read(tmp_path):
    things = [(7, [10, 20, 30, 40], 0), (3, [0, 0, 5, 5], 0), (3, [1, 1, 50, 50], 1)]
    root = coco(tmp_path / "coco", [(things, (100, 50)), ([], (40, 40))] * 2)
    data = boxes.load(str(root), tmp_path, 2, 50, ALONE, 0, 0, (0, 0))
    assert data.classes == ("cat", "dog")
    pictures, targets = next(iter(data.test()))
    assert pictures[0].shape == (3, 50, 50)
    assert targets[0]["labels"].tolist() == [2, 1]
    assert targets[0]["boxes"].tolist() == [[5, 20, 20, 60], [0, 0, 2.5, 5]]
    assert targets[1]["boxes"].shape == (0, 4)
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(SystemExit, match=r"should have annotations/instances_val2017.json"):
        boxes.load(str(root), tmp_path, 2, 50, ALONE, 0, 0, (0, 0))


def test_files_of_coco_that_are_wrong_are_named(tmp_path):
    root = coco(tmp_path / "coco", [([(9, [1, 1, 5, 5], 0)], (40, 40)), ([], (40, 40))])
    data = boxes.load(str(root), tmp_path, 1, 50, ALONE, 0, 0, (0, 0))
    with pytest.raises(DataError, match=r"image 0 of .*val2017.*: category 9 is not among"):
        next(iter(data.test()))
    (root / "train2017" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"image [01] of .*train2017.*cannot be used"):
        list(data.epoch(0))
    told = root / "annotations" / "instances_val2017.json"
    for text, message in (('{"images": [', "JSONDecodeError"), ('{"images": [], "annotations": []}', "no categories")):
        told.write_text(text)
        with pytest.raises(DataError, match=rf"instances_val2017.json .*{message}"):
            boxes.load(str(root), tmp_path, 1, 50, ALONE, 0, 0, (0, 0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("no xml", "ParseError"),
        ("<annotation><object><name>A</name></object></annotation>", "KeyError: 'bndbox'"),
        ("<annotation><object><name>zebra</name><bndbox>{}</bndbox></object></annotation>", "'zebra' is none of the"),
        (None, "FileNotFoundError"),
    ],
)
def test_files_of_voc_that_are_wrong_are_named(tmp_path, wrong, message):
    data = boxes.load("scenes", tmp_path, 1, 64, ALONE, 0, 0, (1, 1))
    path = drawn(tmp_path) / "Annotations" / "val_00000.xml"
    corners = "".join(f"<{key}>{number}</{key}>" for number, key in enumerate(("xmin", "ymin", "xmax", "ymax"), 1))
    path.unlink() if wrong is None else path.write_text(wrong.replace("{}", corners))
    with pytest.raises(DataError, match=rf"val_00000.jpg or .*val_00000.xml cannot be used: .*{message}"):
        next(iter(data.test()))


def test_scenes_of_one_setting_are_not_those_of_another(tmp_path):
    """A run that was stopped trained on what the next one had drawn into its folder, of another size and number."""

    def sizes(path):
        return {str(p.relative_to(path)): Image.open(p).size for p in path.rglob("*.jpg")}

    first, yaml = scenes.write(tmp_path, 3, 1, 32), scenes.write_yolo(tmp_path / "yolo", 3, 1, 32)
    before = sizes(tmp_path)
    assert set(before.values()) == {(32, 32)}
    second, other = scenes.write(tmp_path, 2, 1, 64), scenes.write_yolo(tmp_path / "yolo", 2, 1, 64)
    assert sizes(tmp_path).items() > before.items()
    assert len(boxes.Voc(second, scenes.YEAR, "train", scenes.CLASSES)) == 2
    assert len(list((other.with_suffix("") / "images" / "train").iterdir())) == 2
    assert (scenes.write(tmp_path, 3, 1, 32), scenes.write_yolo(tmp_path / "yolo", 3, 1, 32)) == (first, yaml)
    assert str(yaml.with_suffix("")) in yaml.read_text()


def test_scenes_are_written_in_the_layout_of_yolo(tmp_path):
    """The same boxes as in the layout of Pascal VOC."""
    told = scenes.write_yolo(tmp_path, 2, 1, 96)
    root = str(scenes.write(tmp_path, 2, 1, 96))
    assert scenes.write_yolo(tmp_path, 2, 1, 96) == told
    for number, (_, voc) in enumerate(torchvision.datasets.VOCDetection(root, year="2012", image_set="train")):
        lines = (told.with_suffix("") / "labels" / "train" / f"train_{number:05d}.txt").read_text().splitlines()
        for line, thing in zip(lines, voc["annotation"]["object"], strict=True):
            kind, x, y, w, h = map(float, line.split())
            assert scenes.CLASSES[int(kind)] == thing["name"]
            box = [(x - w / 2) * 96 + 1, (y - h / 2) * 96 + 1, (x + w / 2) * 96, (y + h / 2) * 96]
            assert box == pytest.approx([float(thing["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")], abs=1e-3)


def test_a_folder_that_is_no_voc_is_said(tmp_path):
    with pytest.raises(SystemExit, match="should have VOCdevkit/VOC2007 with JPEGImages"):
        train_detector.main(["--data", str(tmp_path / "none"), "--folder", str(tmp_path)])
