"""Models, weights and data by their names on a command line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import NETS
from torch import nn

from halp_fx.cli.data import load_data, said_of_classes
from halp_fx.cli.models import ModelSpec, import_function, make_model, parse_settings, parse_shape
from halp_fx.cli.weights import load_weights
from halp_fx.errors import HalpError, ModelError


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "nets.py").write_text(NETS)
    yield
    sys.modules.pop("nets", None)


def test_libraries():
    assert type(make_model("torchvision:resnet18", {"num_classes": 3})).__name__ == "ResNet"
    assert make_model("resnet18", {"num_classes": 3}).fc.out_features == 3
    pytest.importorskip("timm")
    assert make_model("timm:resnet10t", {"num_classes": 5}).get_classifier().out_features == 5


def test_random_weights_are_the_same_at_every_call():
    """A search that is kept goes on with them; whoever draws numbers meanwhile is not disturbed."""
    before = torch.get_rng_state()
    one = ModelSpec("nets.py:make", ("1x3x8x8",)).load()[0]
    torch.rand(7)
    two = ModelSpec("nets.py:make", ("1x3x8x8",)).load()[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    torch.set_rng_state(before)
    make_model("nets.py:make")
    assert not torch.equal(one[0].weight, make_model("nets.py:make")[0].weight)


def test_a_detector_fetches_nothing():
    assert type(make_model("torchvision:ssdlite320_mobilenet_v3_large")).__name__ == "SSD"


def test_ultralytics():
    pytest.importorskip("ultralytics")
    for name in ("ultralytics:yolo11n", "ultralytics:yolo11n.yaml"):  # the latter as YOLO() takes it
        assert sum(p.numel() for p in make_model(name).parameters()) > 1e6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("yolo11n.pt", "no file yolo11n.pt, and nothing is downloaded. ultralytics:yolo11n makes it with random"),
        ("best.pt", "no file best.pt, and nothing is downloaded$"),
        ("mine.yaml", "no file mine.yaml, and ultralytics has no model 'mine'"),
        ("yolo11m1", "ultralytics has no model 'yolo11m1'; did you mean yolo11m"),
    ],
)
def test_what_ultralytics_does_not_have(name, words):
    pytest.importorskip("ultralytics")
    with pytest.raises(ModelError, match=words):
        make_model(f"ultralytics:{name}")


def test_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    kind = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    assert type(make_model("hf:resnet", kind)).__name__ == "ResNetForImageClassification"
    transformers.ResNetConfig(**kind, architectures=["ResNetModel"]).save_pretrained(tmp_path / "saved")
    assert type(make_model("hf:saved")).__name__ == "ResNetModel"
    with pytest.raises(ModelError, match=r"did you mean resnet"):
        make_model("hf:resnett")


def _saved_vit(**settings):
    """A small ViT that `save_pretrained` wrote to the folder vit, whose files rename tensors."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3, **settings)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained("vit")
    return model


@pytest.mark.parametrize("weights", [None, "vit/model.safetensors"])
def test_a_folder_of_hugging_face_brings_its_weights(weights):
    saved = _saved_vit()
    said = []
    spec = ModelSpec("hf:vit", ["1x3x16x16"], weights=weights and Path(weights))
    model, inputs = spec.load()
    spec.say_untrained(SimpleNamespace(say=said.append))
    assert not said
    with torch.no_grad():
        assert torch.equal(model(*inputs).logits, saved(*inputs).logits)


def test_a_folder_of_hugging_face_is_made_once(monkeypatch):
    kind = type(_saved_vit())
    made, init = [], kind.__init__

    def counted(self, *args, **kwargs):
        made.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__init__", counted)
    ModelSpec("hf:vit", ["1x3x16x16"]).load()
    assert len(made) == 1


def test_a_folder_whose_class_is_not_named():
    saved = _saved_vit()
    saved.config.architectures = None
    saved.config.save_pretrained("vit")
    model = ModelSpec("hf:vit", ["1x3x16x16"]).load()[0]
    assert type(model) is type(saved)
    assert torch.equal(model.classifier.weight, saved.classifier.weight)


def test_a_folder_of_hugging_face_without_weights_says_so():
    _saved_vit()
    Path("vit/model.safetensors").unlink()
    said = []
    spec = ModelSpec("hf:vit", ["1x3x16x16"])
    spec.load()
    spec.say_untrained(SimpleNamespace(say=said.append))
    assert "random weights" in said[0]


def test_weights_of_a_folder_that_do_not_fit():
    _saved_vit()
    with pytest.raises(ModelError, match=r"weights in vit .*classifier.bias is 3, the model's is 7.* Leave out the --"):
        ModelSpec("hf:vit", settings=["num_labels=7"]).load()
    with pytest.raises(ModelError, match=r"missing .*layers\.1\."):
        ModelSpec("hf:vit", settings=["num_hidden_layers=2"]).load()
    Path("vit/model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="weights in vit cannot be read"):
        ModelSpec("hf:vit").load()


@pytest.mark.parametrize("name", ["nets.py:make", "nets:make", "nets.py:network"])
def test_files_and_modules(name):
    assert isinstance(make_model(name), nn.Sequential)


def test_arguments_of_a_factory():
    assert make_model("nets.py:make", {"width": 5})[0].out_channels == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet81", r"torchvision has no model 'resnet81'; did you mean resnet18"),
        ("torchvision:no_such", "torchvision has no model 'no_such'"),
        ("torchvsion:resnet18", r"'torchvsion' cannot be imported.*did you mean torchvision\?"),
        ("nets.py:mak", r"nets.py has no 'mak'; did you mean make"),
        ("none.py:make", "there is no file none.py"),
        ("nets.py:fails", r"nets.py:fails cannot be made with \(\): RuntimeError: no such luck"),
        ("nets.py:number", "'nets.py:number' is an int, neither an nn.Module nor a function"),
        ("nets.py:batches", r"'nets.py:batches' gave a list, not an nn.Module"),
        ("no.such.module:f", "'no.such.module' cannot be imported"),
    ],
)
def test_what_is_not_there_is_named(name, words):
    with pytest.raises(ModelError, match=words):
        make_model(name)


def test_a_file_with_an_error_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("x = 1 / 0")
    with pytest.raises(ModelError, match=r"'broken.py' cannot be imported: ZeroDivisionError"):
        import_function("broken.py:make")


def test_shapes_and_settings():
    assert parse_shape("2x3x8X8") == (2, 3, 8, 8)
    assert parse_settings(["classes=3", "kind=basic", "on=True", "sizes=[1, 2]"]) == {
        "classes": 3,
        "kind": "basic",
        "on": True,
        "sizes": [1, 2],
    }
    for wrong in ("1x3xa", "", "1x0x3"):
        with pytest.raises(ModelError, match="malformed"):
            parse_shape(wrong)
    with pytest.raises(ModelError, match="write NAME=VALUE"):
        parse_settings(["classes"])


def test_a_source_has_everything():
    source = ModelSpec("nets.py:make", ["2x3x8x8"], ["classes=7"], dtype="bfloat16", channels_last=True)
    model, (x,) = source.load()
    assert not model.training
    assert model[0].weight.dtype == x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert tuple(model(x).shape) == (2, 7)


@pytest.mark.parametrize(("dtype", "device"), [("int8", "cpu"), ("float99", "cpu"), ("float32", "cuda:77")])
def test_dtypes_and_devices_that_are_not_there(dtype, device):
    with pytest.raises(ModelError, match="is not"):
        ModelSpec("nets.py:make", ["1x3x8x8"], dtype=dtype, device=device).load()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_weights_in_the_forms_that_training_leaves(tmp_path, wrap, prefix):
    trained, model = make_model("nets.py:make"), make_model("nets.py:make")
    torch.save(wrap({prefix + k: v for k, v in trained.state_dict().items()}), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in model.state_dict().items())


def test_weights_in_safetensors(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    trained, model = make_model("nets.py:make"), make_model("nets.py:make")
    files.save_file(trained.state_dict(), tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model[0].weight, trained[0].weight)


def test_what_a_module_keeps_beside_tensors_is_no_weight(tmp_path):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            raise AssertionError("weights are read, and nothing else")

    one, other = Counting(3, 4), Counting(3, 4)
    torch.save(one.state_dict(), tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert torch.equal(one.weight, other.weight)


def test_weights_of_another_network_are_named(tmp_path):
    model = make_model("nets.py:make")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    other = make_model("nets.py:make", {"classes": 9}).state_dict()
    del other["0.bias"]
    torch.save({**other, "head.weight": torch.ones(1)}, tmp_path / "w.pt")
    words = r"1 missing \(0.bias\); 1 not in the model \(head.weight\); 2 of another shape"
    with pytest.raises(ModelError, match=words):
        load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_files_that_hold_no_weights(tmp_path):
    model = make_model("nets.py:make")
    torch.save(model, tmp_path / "whole.pt")
    torch.save({"epoch": 3}, tmp_path / "log.pt")
    (tmp_path / "words.pt").write_text("weights, they said")
    (tmp_path / "words.safetensors").write_text("weights, they said")
    for name, words in [
        ("whole.pt", "more than weights"),
        ("log.pt", "no state_dict: it holds a mapping with the keys epoch"),
        ("words.pt", "words.pt"),
        ("words.safetensors", "no file of safetensors"),
        ("none.pt", "there is no file"),
    ]:
        if name.endswith("safetensors"):
            pytest.importorskip("safetensors")
        with pytest.raises(ModelError, match=words):
            load_weights(model, tmp_path / name)


@pytest.fixture
def images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for kind in ("cats", "dogs"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(3):
            size, colour = (20 + 10 * i, 16), (255, 0, 0) if kind == "cats" else (0, 0, 255)
            image.new("RGB", size, colour).save(tmp_path / "photos" / kind / f"{i}.png")
    return tmp_path / "photos"


def test_a_folder_of_images(images):
    data = load_data(str(images), (1, 3, 8, 12), 4)
    first, second = list(data)
    assert tuple(first[0].shape) == (4, 3, 8, 12)
    assert len(second[1]) == 2
    pixels, labels = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    # Red cats are 0, blue dogs 1; both normalised as ImageNet's.
    red = (pixels[:, 0] - (1 - 0.485) / 0.229).abs().amax((1, 2)) < 1e-4
    assert torch.equal(red, labels == 0)
    assert all(torch.equal(a, b) for a, b in zip(next(iter(data)), first, strict=True))


@pytest.mark.parametrize(
    ("outputs", "said"), [(1, "--data has 2 folders of images, and the network 1 output"), (2, ""), (5, "")]
)
def test_more_classes_than_outputs_are_told(images, outputs, said):
    data = load_data(str(images), (1, 3, 8, 8), 4)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, outputs))
    found = said_of_classes(data, net, (torch.rand(1, 3, 8, 8),))
    assert found.startswith(said)
    assert bool(found) == bool(said)
    assert said_of_classes(load_data(str(images / "cats"), (1, 3, 8, 8), 4), net, (torch.rand(1, 3, 8, 8),)) == ""
    assert said_of_classes(data, net, (torch.rand(1, 3, 9, 9),)) == "", "the forward's own error is for later"
    assert said_of_classes([1], net, (torch.rand(1, 3, 8, 8),)) == ""


def test_images_without_classes(images):
    (batch,) = load_data(str(images / "cats"), (1, 1, 8, 8), 4)
    assert tuple(batch.shape) == (3, 1, 8, 8)


def test_batches_of_a_function():
    assert len(list(load_data("nets.py:batches", (1, 3, 8, 8), 4))) == 2
    assert load_data(None, (1, 3, 8, 8), 4) is None


def test_data_that_is_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    for part in ("train", "val"):
        (tmp_path / "whole" / part / "cats").mkdir(parents=True)
        (tmp_path / "whole" / part / "cats" / "a.png").write_text("")
    for name, shape, words in [
        ("empty", (1, 3, 8, 8), "no images there"),
        ("whole", (1, 3, 8, 8), "train, val are parts of a data set and no classes: .* --data whole.train"),
        ("nowhere", (1, 3, 8, 8), "there is no such folder"),
        ("nets.py:number", (1, 3, 8, 8), "gave int, not batches"),
        ("empty", (1, 16), "needs an --input of 4 sizes"),
    ]:
        with pytest.raises(HalpError, match=words):
            load_data(name, shape, 4)
    with pytest.raises(HalpError, match="no image that can be read"):
        list(load_data("broken", (1, 3, 8, 8), 4))
