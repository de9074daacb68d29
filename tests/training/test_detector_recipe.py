"""The recipe for detectors: what it trains and with what, and what its cost is of."""

from __future__ import annotations

import pytest
import torch
import torchvision
import train_detector
from recipes import boxes, detectors
from recipes.faults import DataError
from test_recipes import ALONE, SCENES
from test_recipes import drawn as where_drawn

import halp_fx


@pytest.mark.parametrize("network", [[], ["--network", "ssdlite320_mobilenet_v3_large"]])
def test_a_detector_is_pruned(tmp_path, network):
    found = train_detector.main([*SCENES, *network, "--folder", str(tmp_path)])
    assert found["share"] <= 0.5
    assert 0 <= found["precision"]["map"] <= found["precision"]["map_50"] <= 1
    drawn = torchvision.datasets.VOCDetection(str(where_drawn(tmp_path).parents[1]), year="2012", image_set="val")
    assert len(drawn) == 4
    assert all(told["annotation"]["object"] for _, told in drawn)


@pytest.mark.parametrize(
    ("asked", "network"),
    [
        ([], detectors.SMALL),
        (["--data", "voc"], "ssdlite320_mobilenet_v3_large"),
        (["--data", "voc", "--network", detectors.SMALL], detectors.SMALL),
        (["--network", "ssd300_vgg16"], "ssd300_vgg16"),
        (["--recipe", "smcp"], detectors.SSD512),
    ],
)
def test_what_a_detector_is_trained_with(asked, network):
    given = train_detector.options(asked)
    assert given.network == network
    assert given.optimizer == ("adamw" if network == detectors.SMALL else "sgd")
    assert all(
        value is not None for name, value in vars(given).items() if name in train_detector.OWN.keys() - {"backbone"}
    )


def test_the_small_detector_learns(tmp_path, monkeypatch):
    """Its images by heart, in seconds: what learns nothing here would not learn in minutes either."""
    call = ["--side", "64", "--images", "16", "4", "--rate", "0.03"]
    given = train_detector.options([*call, "--folder", str(tmp_path)])
    data = boxes.load("scenes", tmp_path, given.batch, given.side, ALONE, 0, 0, (16, 4), augment=False)
    monkeypatch.setattr(data, "_test", data._train)
    model = train_detector.made(given, len(data.classes))
    training = train_detector.Training(given, data, ALONE, model, 40)
    for number in range(40):
        training.epoch(number)
    assert training.precision()["map_50"] > 0.5
    assert training.history[-1]["loss"] < 0.6 * training.history[0]["loss"]


def test_the_small_detector_has_one_map_and_no_backbone_of_torchvision():
    model = detectors.make(detectors.SMALL, 9, 100, None)
    assert [tuple(found.shape) for found in model.backbone(torch.rand(1, 3, 100, 100)).values()] == [(1, 64, 13, 13)]
    with pytest.raises(DataError, match="--network fcos_small has no backbone of torchvision: --backbone DEFAULT"):
        detectors.make(detectors.SMALL, 9, 100, "DEFAULT")


def test_the_small_detector_may_be_wider():
    narrow, wide = (detectors.make(detectors.SMALL, 9, 64, None, wider) for wider in (1, 2))
    for one, other in zip(narrow.backbone.stages, wide.backbone.stages, strict=True):
        assert other.conv2.out_channels == 2 * one.conv2.out_channels
    assert wide.backbone.out_channels == 2 * narrow.backbone.out_channels
    assert wide.topk_candidates == 100  # As many boxes are suppressed, however sure a network is.
    for wider, name in ((2, detectors.SSD512), (0, detectors.SMALL)):
        with pytest.raises(DataError, match=f"--wider {wider} must be 1 or more, and is for --network fcos_small"):
            detectors.make(name, 9, 64, None, wider)


def test_the_cost_is_of_as_many_images_as_asked_for(tmp_path, monkeypatch):
    """Scenes, and not noise: boxes are found in them."""
    asked = []
    monkeypatch.setattr(halp_fx, "Pruner", lambda model, budget, example, **options: asked.append(example))
    given = train_detector.options(["--timed", "3", "--side", "64"])
    data = boxes.load("scenes", tmp_path, 2, 64, ALONE, 0, 0, (2, 4), augment=False)
    training = train_detector.Training(given, data, ALONE, train_detector.made(given, len(data.classes)), 1)
    train_detector.pruner_of(given, training, ALONE)
    ((pictures,),) = asked
    wanted = [picture for batch, _ in data.test() for picture in batch][:3]
    assert len(pictures) == 3
    assert all(torch.equal(one, other) for one, other in zip(pictures, wanted, strict=True))
    for count in (0, 5):
        with pytest.raises(SystemExit, match=f"--timed {count}: there are 4 images to test on"):
            data.examples(count, torch.device("cpu"))
