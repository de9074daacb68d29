"""What recipes are given that they cannot use is said in a line, before anything is drawn or trained."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import train_classifier
import train_detector
import train_yolo
from recipes import boxes, checkpoints, images
from recipes.faults import DataError
from test_recipes import ALONE, SCENES, SHORT, coco, drawn, folder

from halp_fx import PathError

RECIPES = {"classifier": train_classifier, "detector": train_detector, "yolo": train_yolo}


@pytest.mark.parametrize(
    ("recipe", "option", "message"),
    [
        ("classifier", ["--batch", "0"], "'0' is not a whole number of at least 1"),
        ("classifier", ["--epochs", "-1"], "'-1' is not a whole number of at least 1"),
        ("classifier", ["--dense-epochs", "-1"], "at least 0"),
        ("classifier", ["--images", "0", "9"], "at least 1"),
        ("classifier", ["--threads", "0"], "at least 1"),
        ("classifier", ["--rate", "nan"], "'nan' is not a number above 0"),
        ("classifier", ["--momentum", "-1"], "'-1' is not a number from 0 to 1"),
        ("classifier", ["--smoothing", "2"], "'2' is not a number from 0 to 1"),
        ("classifier", ["--temperature", "warm"], "'warm' is not a number above 0"),
        ("classifier", ["--decay", "inf"], "'inf' is not a number from 0"),
        ("detector", ["--batch", "x"], "'x' is not a whole number of at least 1"),
        ("detector", ["--side", "0"], "at least 1"),
        ("detector", ["--rate", "-0.1"], "above 0"),
        ("detector", ["--epochs", "1.5"], "'1.5' is not a whole number"),
        ("yolo", ["--share", "2"], "'2' is not a number from 0 to 1"),
        ("yolo", ["--images", "4", "0"], "at least 1"),
        ("yolo", ["--dense-epochs", "0"], "at least 1"),
    ],
)
def test_numbers_out_of_range_are_said_with_their_option(recipe, option, message, capsys):
    with pytest.raises(SystemExit) as ended:
        RECIPES[recipe].options(option)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"argument {option[0]}: " in told
    assert message in told


@pytest.mark.parametrize("place", ["file", "file/below", "folder of a file's name"])
@pytest.mark.parametrize(("recipe", "call"), [(train_classifier, SHORT), (train_detector, SCENES)])
def test_a_folder_that_cannot_be_written_is_said(recipe, call, place, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder of a file's name" / "network.pt").mkdir(parents=True)
    with pytest.raises(PathError, match=r"file, and no folder|network\.pt is a folder"):
        recipe.main([*call, "--folder", str(tmp_path / place)])
    assert (tmp_path / "file").read_text() == "mine"


def test_a_batch_of_more_than_was_drawn_is_said(tmp_path):
    with pytest.raises(SystemExit, match="--images 96: that is less than one batch of 1000 in each process"):
        train_classifier.main([*SHORT, "--batch", "1000", "--folder", str(tmp_path)])


def test_what_is_needed_for_pictures_of_the_run_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="this needs tensorboard"):
        train_classifier.main([*SHORT, "--tensorboard", "--folder", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_worker_says_in_a_line_which_image_it_cannot_use(tmp_path):
    """And not the traceback of another process."""
    root = folder(tmp_path / "images", {"train": ("cat", "dog"), "val": ("cat", "dog")})
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    data = images.load(str(root), tmp_path, 2, ALONE, 0, 1, (0, 0))
    with pytest.raises(DataError) as error:
        list(data.epoch(0))
    assert str(error.value).startswith(str(root))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, and the call that goes on from it."""
    place = tmp_path_factory.mktemp("run")
    call = [*SHORT, "--epochs", "1", "--folder"]
    train_classifier.main([*call, str(place)])
    return place, call


@pytest.mark.parametrize("name", ["dense.pt", "checkpoint.pt"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1], "was not written by a recipe"),
        ({"weights": {}}, "was not written by a recipe"),
        ("settings", r"is not whole, it has no (weights|model, optimizer)"),
        (b"no state", r"cannot be read: [^\n]*$"),
    ],
)
def test_a_checkpoint_that_is_none_is_said_and_stays(name, wrong, message, run, tmp_path):
    path = shutil.copytree(run[0], tmp_path / "run") / name
    if wrong == "settings":
        wrong = {"settings": torch.load(path)["settings"]}
    path.write_bytes(wrong) if isinstance(wrong, bytes) else checkpoints.write(path, wrong)
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=message):
        train_classifier.main([*run[1], str(path.parent)])
    assert path.read_bytes() == before


def box(left, top, right, bottom):
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (left, top, right, bottom), strict=True)
    told = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
    return f"<annotation><object><name>A</name><bndbox>{told}</bndbox></object></annotation>"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            box(40, 5, 20, 50),
            r"its box from \(39, 4\) to \(20, 50\) has nothing of the image, which has 64 x 64 pixels",
        ),
        (box(5, 6, 4, 50), "has nothing of the image"),
        (box("nan", 5, 20, 50), "has nothing of the image"),
        (box(1, 5, "inf", 50), "has nothing of the image"),
        (box(100, 5, 120, 50), "has nothing of the image"),
        ("<annotation>nothing</annotation>", "AttributeError"),
    ],
)
def test_boxes_of_voc_in_which_there_is_nothing_are_named(told, message, tmp_path):
    """A NaN made the loss one, and what is empty ended in an assertion of torchvision, without the file's name."""
    data = boxes.load("scenes", tmp_path, 1, 64, ALONE, 0, 0, (1, 1))
    (drawn(tmp_path) / "Annotations" / "train_00000.xml").write_text(told)
    with pytest.raises(DataError, match=rf"train_00000.xml cannot be used: .*{message}"):
        list(data.epoch(0))


def test_a_box_that_leaves_the_image_is_taken(tmp_path):
    data = boxes.load("scenes", tmp_path, 1, 64, ALONE, 0, 0, (1, 1), augment=False)
    (drawn(tmp_path) / "Annotations" / "train_00000.xml").write_text(box(1, 5, 90, 50))
    ((_, (target,)),) = data.epoch(0)
    assert target["boxes"].tolist() == [[0, 4, 90, 50]]


def with_box(told, box):
    return told | {"annotations": [told["annotations"][0] | {"bbox": box}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: [1], "annotation file format"),
        (lambda told: told | {"categories": [{"id": 3}]}, "KeyError: 'name'"),
        (lambda told: told | {"categories": [*told["categories"], {"id": "x", "name": "y"}]}, "TypeError"),
        (lambda told: {key: value for key, value in told.items() if key != "annotations"}, "has no annotations"),
        (lambda told: with_box(told, [1, 2, float("nan"), 4]), "nothing of the image"),
        (lambda told: with_box(told, [1, 2, -3, 4]), "nothing of the image"),
        (lambda told: with_box(told, [90, 2, 3, 4]), "nothing of the image"),
    ],
)
def test_a_file_of_coco_that_is_misshapen_is_named(change, message, tmp_path):
    root = coco(tmp_path / "coco", [([(3, [1, 1, 5, 5], 0)], (40, 40)), ([(7, [1, 1, 0, 5], 0)], (40, 40))])
    assert sum(len(t["boxes"]) for _, (t,) in boxes.load(str(root), tmp_path, 1, 50, ALONE, 0, 0, (0, 0)).test()) == 1
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=rf"val2017.*{message}"):
        list(boxes.load(str(root), tmp_path, 1, 50, ALONE, 0, 0, (0, 0)).test())


def test_a_list_of_voc_that_is_no_text_is_said(tmp_path):
    boxes.load("scenes", tmp_path, 1, 64, ALONE, 0, 0, (1, 1))
    (drawn(tmp_path) / "ImageSets" / "Main" / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SystemExit, match=r"should have VOCdevkit/VOC2012 with .*val\.txt"):
        boxes.load("scenes", tmp_path, 1, 64, ALONE, 0, 0, (1, 1))
