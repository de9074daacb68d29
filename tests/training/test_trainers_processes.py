"""Callbacks of other trainers in two processes of a job, against one with the same batches."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from processes import spawn
from test_training_processes import network
from torch import nn
from torch.nn import functional as F

CALL = {"latency": "macs", "round_to": 1, "steps": 2, "interval": 3, "mode": "mask"}
BATCHES = 8


def data(count, size):
    draw = torch.Generator().manual_seed(3)
    return [(torch.randn(size, 3, 8, 8, generator=draw), torch.arange(size) % 5) for _ in range(count)]


def by_lightning(folder, rank=0, size=1):
    import lightning

    from halp_fx.training.lightning import PrunerCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network().float()

        def training_step(self, batch, _):
            return F.cross_entropy(self.net(batch[0][rank::size]), batch[1][rank::size])

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), 0.05, momentum=0.9)

    module, callback = Module(), PrunerCallback(0.4, torch.zeros(1, 3, 8, 8), network="net", **CALL)
    strategy = {"devices": size, "strategy": "ddp" if size > 1 else "auto", "use_distributed_sampler": False}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "default_root_dir": folder, "max_epochs": 1}
    loader = torch.utils.data.DataLoader(data(BATCHES, 4), batch_size=None)
    lightning.Trainer(callbacks=[callback], **quiet | strategy).fit(module, loader)
    return callback.pruner, module.net


class Labelled(nn.Module):
    """A network as the Trainer of transformers takes it."""

    def __init__(self):
        super().__init__()
        self.net = network().float()

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        return {"logits": logits} | ({} if labels is None else {"loss": F.cross_entropy(logits, labels)})


def by_transformers(folder, rank=0, size=1):
    import transformers

    from halp_fx.training.huggingface import PrunerCallback

    arguments = transformers.TrainingArguments(
        str(folder), max_steps=BATCHES, per_device_train_batch_size=4 // size, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, optim="sgd", learning_rate=0.05, lr_scheduler_type="constant",
        ddp_backend="gloo" if size > 1 else None, seed=1,
    )  # fmt: skip
    samples = [{"pixel_values": x[i], "labels": int(y[i])} for x, y in data(BATCHES, 4) for i in range(4)]
    model = Labelled()
    callback = PrunerCallback(0.4, {"pixel_values": torch.zeros(1, 3, 8, 8)}, **CALL)
    transformers.Trainer(model, arguments, train_dataset=samples, callbacks=[callback]).train()
    return callback.pruner, model


WAYS = {"lightning": by_lightning, "transformers": by_transformers}


def result(pruner, model):
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return {"plan": pruner.plan.to_json(), "met": model.halp.met, "state": state}


def work(rank, folder, name, port):
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "one"}
    os.environ.update({key: str(value) for key, value in told.items()})
    torch.save(result(*WAYS[name](folder, rank, 2)), f"{folder}/{rank}.pt")
    # A process that leaves while the other still listens to it may die of its threads.
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_prune_as_one(name, tmp_path):
    pytest.importorskip(name, reason=f"not installed: {name}")
    if name == "transformers":
        pytest.importorskip("accelerate", reason="not installed: accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(work, str(tmp_path), name, port)
    found = [torch.load(Path(tmp_path) / f"{rank}.pt") for rank in (0, 1)]
    alone = result(*WAYS[name](tmp_path))
    assert found[0]["met"]
    assert found[0]["plan"] == found[1]["plan"] == alone["plan"]
    for key, tensor in alone["state"].items():
        assert torch.equal(found[0]["state"][key], found[1]["state"][key])
        torch.testing.assert_close(found[0]["state"][key], tensor, rtol=1e-3, atol=1e-5)
