"""`load` takes what `save` wrote, and refuses anything else by name: never another error, never another network."""

from __future__ import annotations

import json
import random
import struct

import pytest
import safetensors.torch
import torch
from oracle import random_plan
from test_prune import Small

import halp_fx
from halp_fx import CheckpointError
from halp_fx.saving import checkpoint, errors

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MUTATIONS = 1000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = Small().eval()
    small = halp_fx.prune(model, 0.5, X, latency="macs", progress=False)
    path = tmp_path_factory.mktemp("saved") / "small.safetensors"
    halp_fx.save(small, path)
    return path


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One of the things that happen to files."""
    at = draw.randrange(len(data))
    header = 8 + struct.unpack("<Q", data[:8])[0]
    kind = draw.choice(("bit", "header bit", "length bit", "byte", "cut", "lost", "zeros", "twice", "more", "swapped"))
    match kind:
        case "bit" | "header bit" | "length bit":
            at = {"header bit": draw.randrange(header), "length bit": draw.randrange(8)}.get(kind, at)
            return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        case "byte":
            return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        case "cut":
            return data[:at]
        case "lost":
            return data[:at] + data[at + draw.randint(1, 64) :]
        case "zeros":
            count = min(draw.randint(1, 64), len(data) - at)
            return data[:at] + bytes(count) + data[at + count :]
        case "twice":
            return data[:at] + data[max(at - draw.randint(1, 64), 0) :]
        case "more":
            return data + draw.randbytes(draw.randint(1, 64))
    other = draw.randrange(len(data))
    block = slice(min(at, other), min(at, other) + 8)
    return data[: block.start] + data[block][::-1] + data[block.stop :]


def test_a_thousand_damaged_files(saved, tmp_path):
    good, draw, path = saved.read_bytes(), random.Random(0), tmp_path / "damaged"
    whole = checkpoint.read(saved)
    refused = same = 0
    while refused < MUTATIONS:
        data = mutated(good, draw)
        path.write_bytes(data)
        try:
            back = checkpoint.read(path)
        except CheckpointError as refusal:
            named = str(path) in str(refusal)
            refused += 1
            assert named
            assert path.read_bytes() == data
        else:  # What was changed says nothing: the order of the header's entries, at most.
            same += data != good
            assert back.source == whole.source
            assert back.state == whole.state
            assert all(torch.equal(back.tensors[name], t) for name, t in whole.tensors.items())
    assert same <= MUTATIONS / 100


def is_whole(path) -> bool:
    try:
        checkpoint.read(path)
    except CheckpointError:
        return False
    return True


@pytest.mark.parametrize("seed", range(8))
def test_load_itself_refuses(seed, saved, tmp_path):
    """The whole way, for a few. What says nothing (zeros for zeros) is drawn again: the file holds seconds, so where it
    falls is another place in every run."""
    good, draw, path = saved.read_bytes(), random.Random(seed), tmp_path / "damaged"
    path.write_bytes(good)
    while is_whole(path):
        path.write_bytes(mutated(good, draw))
    with pytest.raises(CheckpointError, match="damaged"):
        halp_fx.load(path, Small)


def written(saved, path, **changes) -> None:
    """The file with other metadata, and a checksum that fits."""
    with safetensors.safe_open(saved, "pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    metadata = {k: v for k, v in {**metadata, **changes}.items() if v is not None}
    metadata["checksum"] = checkpoint._checksum(metadata, tensors)
    safetensors.torch.save_file(tensors, path, metadata)


def test_kinds_of_files_are_told_apart(saved, tmp_path):
    path = tmp_path / "file"
    written(saved, path, format="halp_fx.checkpoint/2", halp_fx="7.0")
    with pytest.raises(errors.CheckpointVersionError, match=r"written by halp_fx 7\.0: install"):
        halp_fx.load(path, Small)
    safetensors.torch.save_file({"w": torch.rand(2)}, path)
    with pytest.raises(errors.ForeignFileError, match="not written by halp_fx"):
        halp_fx.load(path, Small)
    safetensors.torch.save_file({"w": torch.rand(2)}, path, {"format": "pt"})
    with pytest.raises(errors.ForeignFileError, match="load_state_dict"):
        halp_fx.load(path, Small)
    torch.save(Small().state_dict(), path)
    for content in (path.read_bytes(), b"", b"{}", b"\xff" * 100, struct.pack("<Q", 2) + b"{}"):
        path.write_bytes(content)
        with pytest.raises((errors.CorruptCheckpointError, errors.ForeignFileError)):
            halp_fx.load(path, Small)
    with pytest.raises(halp_fx.CheckpointError, match="is a folder: name the file in it"):
        halp_fx.load(tmp_path, Small)


def test_a_checksum_alone_is_not_trusted(saved, tmp_path):
    """Whoever edits a file can make the checksum fit, and still gets no other error, and no wrong network."""
    path = tmp_path / "file"
    with safetensors.safe_open(saved, "pt") as file:
        metadata = file.metadata()
    origin, state = json.loads(metadata["origin"]), json.loads(metadata["state"])
    group, rows = next(iter(origin["plans"][0]["kept"].items()))
    first = next(iter(state["strides"]), "a.weight")

    def plan(kept):
        return json.dumps({**origin, "plans": [{"format": "halp_fx.plan/1", "kept": kept}]})

    for changes in (
        {"origin": plan({group: rows[:-1]})},
        {"origin": plan({group: [*rows, 10**6]})},
        {"origin": plan({"no such layer": [0]})},
        {"origin": plan({group: [2, 1]})},
        {"origin": plan({})},
        {"origin": json.dumps({**origin, "plans": []})},
        {"origin": json.dumps({**origin, "plans": 3})},
        {"origin": json.dumps({**origin, "dense": {"shapes": {}}})},
        {"origin": json.dumps({**origin, "inputs": {"tensor": ["a"], "dtype": "float32"}})},
        {"origin": json.dumps({**origin, "inputs": {"tensor": [1], "dtype": "rand"}})},
        {"origin": json.dumps({**origin, "inputs": {"tuple": [{"plain": 3}]}})},
        {"origin": json.dumps({**origin, "dense": {**origin["dense"], "dtypes": {"a.weight": "load"}}})},
        {"origin": json.dumps({**origin, "dense": {**origin["dense"], "tied": {"a.weight": "nothing"}}})},
        {"origin": json.dumps({**origin, "dense": {**origin["dense"], "tied": {"no.such": "a.weight"}}})},
        {"origin": "{"},
        {"origin": None},
        {"network": None},
        {"report": "{}"},
        {"state": json.dumps({**state, "strides": {first: [1, 1, 1, 1]}})},
        {"state": json.dumps({**state, "strides": {first: [1]}})},
        {"state": json.dumps({**state, "tied": {"a.weight": "b.bias"}})},
        {"state": json.dumps({**state, "tied": {"a.weight": "nothing"}})},
        {"state": json.dumps({**state, "training": "all"})},
        *({key: "[" * 10**5} for key in ("origin", "state", "report")),
        {"origin": json.dumps({**origin, "dense": {"shapes": {"a.weight": [float("nan")]}}})},
        {"origin": json.dumps({**origin, "inputs": {"tensor": [10**30], "dtype": "float32"}})},
    ):
        written(saved, path, **changes)
        with pytest.raises(CheckpointError):
            halp_fx.load(path, Small)


def test_numbers_that_cannot_be_trained_are_no_parameter(saved, tmp_path):
    with safetensors.safe_open(saved, "pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    tensors["fc.bias"] = tensors["fc.bias"].to(torch.int8)
    metadata["checksum"] = checkpoint._checksum(metadata, tensors)
    safetensors.torch.save_file(tensors, tmp_path / "file", metadata)
    with pytest.raises(errors.CorruptCheckpointError, match=r"holds fc\.bias as int8 and says that it is trained"):
        halp_fx.load(tmp_path / "file", Small)


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*none\.safetensors$"):
        halp_fx.load(tmp_path / "none.safetensors", Small)


def test_a_tensor_that_is_lost_or_added_is_seen(saved, tmp_path):
    with safetensors.safe_open(saved, "pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    path = tmp_path / "file"
    for changed in (
        {k: v for k, v in tensors.items() if k != "fc.bias"},
        {**tensors, "more": torch.rand(2)},
        {**tensors, "fc.bias": tensors["fc.bias"].double()},
        {**tensors, "fc.bias": -tensors["fc.bias"]},
    ):
        safetensors.torch.save_file(changed, path, metadata)
        with pytest.raises(errors.CorruptCheckpointError, match="checksum"):
            halp_fx.load(path, Small)


def test_the_network_that_comes_back_differs_from_other_plans(saved):
    """The fuzz test compares what was read: what is read decides the network."""
    model = Small().eval()
    small = halp_fx.load(saved, model)
    other = halp_fx.rewrite(model, random_plan(halp_fx.channel_groups(model, X)), X)
    assert [p.shape for p in small.parameters()] != [p.shape for p in other.parameters()]
