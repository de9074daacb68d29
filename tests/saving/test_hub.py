"""Networks that go to a folder or to the Hub, and come back. Nothing here uses the network: the Hub is a stand-in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch import nn

import halp_fx
from halp_fx import CheckpointError
from halp_fx.saving import hub

X = torch.rand(2, 3, 8, 8)


class Net(nn.Module, hub.HubMixin):
    def __init__(self, width: int = 16, classes: int = 4):
        super().__init__()
        self.width = width
        self.a, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.norm(self.a(x)).relu().mean((2, 3)))


def pruned(**settings):
    torch.manual_seed(0)
    return halp_fx.prune(Net(**settings).eval(), 0.5, X, latency="macs", round_to=1, progress=False)


def same(one, other):
    with torch.no_grad():
        return torch.equal(one(X), other(X))


def test_a_folder_and_back(tmp_path):
    small = pruned(width=24)
    small.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text()) == {"width": 24, "classes": 4}, "the dense network's"
    assert "halp_fx" in (tmp_path / "README.md").read_text()
    back = Net.from_pretrained(tmp_path)
    assert type(back) is Net
    assert back.a.out_channels == small.a.out_channels < 24
    assert same(back, small)
    assert back.halp == small.halp
    back.save_pretrained(tmp_path / "again")
    assert same(Net.from_pretrained(tmp_path / "again"), small)


def test_arguments_that_are_given_come_first(tmp_path):
    pruned(width=24).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="fits another network than this Net"):
        Net.from_pretrained(tmp_path, width=32)


def test_a_dense_network_is_refused_and_the_folder_stays(tmp_path):
    pruned().save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"does not come from halp_fx\.prune"):
        Net().save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_without_a_network_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"there is no file .*model\.safetensors"):
        Net.from_pretrained(tmp_path)


class Hub:
    """Keeps what is uploaded in a folder; what of it is asked for by name."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def __call__(self, **_):
        return self

    def create_repo(self, repo_id, **_):
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(self, repo_id, folder_path, **_):
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"https://hub/{repo_id}"

    def download(self, repo_id, filename, **settings):
        self.asked.append((filename, settings["revision"], settings["token"]))
        return str(self.folder / repo_id / filename)


def test_to_the_hub_and_back(tmp_path, monkeypatch):
    stand_in = Hub(tmp_path)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", stand_in)
    monkeypatch.setattr(hub, "hf_hub_download", stand_in.download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", stand_in.download)
    small = pruned(width=20)
    assert small.push_to_hub("me/small") == "https://hub/me/small"
    back = Net.from_pretrained("me/small", revision="v1", token="mine")
    assert same(back, small)
    assert [row[0] for row in stand_in.asked] == ["config.json", "model.safetensors"]
    assert {row[1:] for row in stand_in.asked} == {("v1", "mine")}


def test_the_package_that_is_missing_is_named():
    """In a process of its own, where it cannot be imported; the rest of the package does without it."""
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "import halp_fx, halp_fx.saving\n"
        "try:\n    from halp_fx.saving.hub import HubMixin\n"
        "except halp_fx.CheckpointError as error:\n    print(error)"
    )
    root = Path(halp_fx.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert 'pip install "huggingface_hub>=' in done.stdout


def test_the_stand_in_is_asked_as_the_hub_is():
    """Both functions take these arguments, so the mixin calls what is there."""
    import inspect

    taken = inspect.signature(huggingface_hub.hf_hub_download).parameters
    assert {"repo_id", "filename", "revision", "token", "cache_dir", "force_download", "local_files_only"} <= set(taken)
