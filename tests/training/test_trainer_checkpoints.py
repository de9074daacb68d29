"""Checkpoints of other trainers: a run goes on from one, the best is one of the pruned network, and what does not fit
is said."""

from __future__ import annotations

import pytest
import torch
from test_pruner import batches
from test_rebind import X, network
from torch.nn import functional as F

import halp_fx
from halp_fx import TrainingError

lightning = pytest.importorskip("lightning", reason="not installed: lightning")
CALL = {"latency": "macs", "round_to": 1, "steps": 2, "interval": 3}


class Module(lightning.LightningModule):
    """Its loss to be watched is what it is told, one an epoch."""

    def __init__(self, losses=()):
        super().__init__()
        self.net, self.losses = network(), losses

    def training_step(self, batch, _):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("loss", self.losses[self.current_epoch] if self.losses else 0.0)

    def test_step(self, batch):
        self.log("mean", self.net(batch[0]).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.05, momentum=0.9)


class Saver(lightning.Callback):
    def __init__(self, path, epoch):
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer, _):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


def pruning(mode="shrink", **more):
    from halp_fx.training.lightning import PrunerCallback

    return PrunerCallback(0.4, X[:1], network="net", mode=mode, **CALL | more)


def trainer(folder, *callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"default_root_dir": folder, "max_epochs": 2, "num_sanity_val_steps": 0}
    quiet |= {
        "enable_checkpointing": any(isinstance(c, lightning.pytorch.callbacks.ModelCheckpoint) for c in callbacks)
    }
    return lightning.Trainer(callbacks=list(callbacks), **quiet | options)


def loader():
    return torch.utils.data.DataLoader(list(batches(5)), batch_size=None)


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(n == m and torch.equal(a, b) for (n, a), (m, b) in pairs)


@pytest.mark.parametrize("mode", ["shrink", "mask"])
@pytest.mark.parametrize("interval", [2, 3, 4], ids=["done", "half way", "one"])
def test_a_run_goes_on_from_a_checkpoint(mode, interval, tmp_path):
    """Steps of pruning are taken after batches 2 and 4, 3 and 6, 4 and 8, and the checkpoint is of after 5."""
    found = []
    for path in (None, tmp_path / "one.ckpt"):
        module, callback = Module(), pruning(mode, interval=interval)
        trainer(tmp_path, callback, Saver(tmp_path / "one.ckpt", 0)).fit(module, loader(), ckpt_path=path)
        found.append((callback.pruner, module))
    assert found[0][0].plan == found[1][0].plan
    assert found[1][0].model is found[1][1].net
    assert found[1][1].net.halp.met
    assert same(found[0][1], found[1][1])
    halp_fx.save(found[1][1].net, tmp_path / "small.safetensors")
    again = halp_fx.load(tmp_path / "small.safetensors", network())
    assert same(again, found[1][1].net)


@pytest.mark.parametrize("mode", ["shrink", "mask"])
def test_a_checkpoint_of_the_last_step_is_cut(mode, tmp_path):
    """There is nothing left to train, so Lightning starts no training: the dense network was left, masked."""
    found = []
    for path in (None, tmp_path / "last.ckpt"):
        module = Module()
        trainer(tmp_path, pruning(mode), Saver(tmp_path / "last.ckpt", 1)).fit(module, loader(), ckpt_path=path)
        found.append(module.net)
    assert found[1].halp.met
    assert same(*found)


@pytest.mark.parametrize("mode", ["shrink", "mask"])
def test_the_best_is_one_of_the_pruned_network(mode, tmp_path):
    """By the loss it would be that of the first epoch, which ended in torch's "size mismatch"."""
    best = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "best", monitor="loss")
    early = lightning.pytorch.callbacks.EarlyStopping("loss", patience=1)
    module, callback = Module([0.1, 0.9, 0.5, 0.4]), pruning(mode)
    kept = trainer(tmp_path, callback, best, early, max_epochs=4)
    kept.fit(module, loader(), loader())
    assert kept.current_epoch == 4  # Not stopped by the losses of the dense network.
    assert best.best_model_score == 0.4
    assert "epoch=3" in best.best_model_path
    assert (tmp_path / "best" / "epoch=0-step=5.ckpt").exists()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kept.test(module, loader(), ckpt_path="best", verbose=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with pytest.raises(TrainingError, match=r"another network than the pruned one \(net\..*before the last step"):
        kept.test(module, loader(), ckpt_path=tmp_path / "best" / "epoch=0-step=5.ckpt", verbose=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("mode", ["shrink", "mask"])
def test_a_fresh_module_is_cut_for_a_checkpoint_that_is_tested(mode, tmp_path):
    module, callback = Module(), pruning(mode)
    kept = trainer(tmp_path, callback)
    kept.fit(module, loader())
    kept.save_checkpoint(tmp_path / "cut.ckpt")
    (told,) = kept.test(module, loader(), verbose=False)
    again = Module()
    (found,) = trainer(tmp_path, pruning(mode)).test(again, loader(), ckpt_path=tmp_path / "cut.ckpt", verbose=False)
    assert found == told
    assert same(again, module)
    if mode == "mask":
        with pytest.raises(TrainingError, match=r"network that was cut .*after masks were: there is nothing left"):
            trainer(tmp_path, pruning(mode), max_epochs=3).fit(Module(), loader(), ckpt_path=tmp_path / "cut.ckpt")
    # By hand, as the message says.
    held = torch.load(tmp_path / "cut.ckpt", weights_only=False)
    plan = halp_fx.Plan.from_json(held["callbacks"][callback.state_key]["plan"])
    by_hand = Module()
    by_hand.net = halp_fx.rewrite(by_hand.net, plan, X[:1])
    by_hand.load_state_dict(held["state_dict"])
    assert same(by_hand, module)


def test_a_module_that_is_pruned_itself_goes_on(tmp_path):
    from halp_fx.training.lightning import PrunerCallback

    class Whole(Module):
        def forward(self, x):
            return self.net(x)

    found = []
    for path in (None, tmp_path / "one.ckpt"):
        module = Whole()
        callback = PrunerCallback(0.4, X[:1], **CALL)
        trainer(tmp_path, callback, Saver(tmp_path / "one.ckpt", 0)).fit(module, loader(), ckpt_path=path)
        found.append(module)
    assert same(*found)
    assert "on_load_checkpoint" not in vars(found[1])


def test_a_training_that_ends_while_it_is_pruned_says_that_no_checkpoint_fits(tmp_path, caplog):
    best = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "best", monitor="loss")
    module = Module([0.5, 0.5])
    kept = trainer(tmp_path, pruning(interval=6), best)
    kept.fit(module, loader(), loader())
    assert module.net.halp.met
    assert not best.best_model_path
    assert "no checkpoint holds the network that is left: trainer.save_checkpoint" in caplog.text
