"""Callbacks in the trainers of other libraries."""

from __future__ import annotations

import copy
import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from test_pruner import batches
from test_rebind import X, network
from torch.nn import functional as F

import halp_fx
from halp_fx import TrainingError

CALL = {"latency": "macs", "round_to": 1, "steps": 2, "interval": 3}


@pytest.mark.parametrize(
    ("module", "package", "command"),
    [
        ("lightning", "lightning.pytorch", r'pip install "lightning>=[\d.]+"$'),
        ("huggingface", "transformers", r'pip install "transformers>=[\d.]+" "accelerate>=[\d.]+"$'),
    ],
)
def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch, module, package, command):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"halp_fx.training.{module}", raising=False)
    with pytest.raises(TrainingError, match=command):
        importlib.import_module(f"halp_fx.training.{module}")


class TestLightning:
    @pytest.fixture
    def lightning(self):
        return pytest.importorskip("lightning", reason="not installed: lightning")

    def module(self, lightning, optimizers=1):
        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = network()

            def forward(self, x):
                return self.net(x)

            def training_step(self, batch, _):
                return F.cross_entropy(self(batch[0]), batch[1])

            def configure_optimizers(self):
                made = [torch.optim.SGD(self.net.parameters(), 0.05, momentum=0.9) for _ in range(optimizers)]
                return made if optimizers > 1 else made[0]

        return Module()

    def trainer(self, lightning, folder, *callbacks, **options):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        quiet |= {"enable_checkpointing": False, "default_root_dir": folder, "max_epochs": 2}
        return lightning.Trainer(callbacks=list(callbacks), **quiet | options)

    def loader(self):
        return torch.utils.data.DataLoader(list(batches(5)), batch_size=None)

    @pytest.mark.parametrize(
        ("network", "mode"), [("net", "shrink"), ("", "shrink"), ("net", "mask")], ids=["net", "module", "mask"]
    )
    def test_it_prunes_in_place_as_a_loop_does(self, lightning, tmp_path, network, mode):
        from halp_fx.training.lightning import PrunerCallback

        module = self.module(lightning)
        callback = PrunerCallback(0.4, X[:1], network=network, mode=mode, **CALL)
        self.trainer(lightning, tmp_path, callback, gradient_clip_val=0.1).fit(module, self.loader())
        own = self.module(lightning).net.train()
        optimizer = torch.optim.SGD(own.parameters(), 0.05, momentum=0.9)
        pruner = halp_fx.Pruner(own, 0.4, X[:1], optimizer=optimizer, mode=mode, **CALL)
        for x, y in [*batches(5), *batches(5)]:
            optimizer.zero_grad()
            F.cross_entropy(own(x), y).backward()
            pruner.step()
            torch.nn.utils.clip_grad_norm_(own.parameters(), 0.1)
            optimizer.step()
        pruner.finish()
        assert callback.pruner.model.halp.met
        assert all(torch.equal(p, q) for p, q in zip(module.net.parameters(), own.parameters(), strict=True))

    def test_what_does_not_go_together_is_said(self, lightning, tmp_path):
        from halp_fx.training.lightning import PrunerCallback

        with pytest.raises(TrainingError, match="regrow=True needs the forward before"):
            PrunerCallback(0.4, X[:1], mode="mask", regrow=True)
        wrong = self.trainer(lightning, tmp_path, PrunerCallback(0.4, X[:1], network="nest", **CALL))
        with pytest.raises(TrainingError, match=r"network='nest': .*no attribute"):
            wrong.fit(self.module(lightning), self.loader())
        with pytest.raises(TrainingError, match=r"wrapped the network for 2 processes.*mode='mask'"):
            PrunerCallback(0.4, X[:1]).on_train_start(SimpleNamespace(optimizers=[None], world_size=2), None)
        average = lightning.pytorch.callbacks.StochasticWeightAveraging(0.01)
        averaging = self.trainer(lightning, tmp_path, PrunerCallback(0.4, X[:1], **CALL), average)
        with pytest.raises(TrainingError, match=r"StochasticWeightAveraging keeps an average .*averages=\[ema\]"):
            averaging.fit(self.module(lightning), self.loader())
        two = self.module(lightning, optimizers=2)
        two.automatic_optimization = False
        with pytest.raises(TrainingError, match="for one optimizer, and there are 2"):
            self.trainer(lightning, tmp_path, PrunerCallback(0.4, X[:1], **CALL)).fit(two, self.loader())


class TestHuggingFace:
    @pytest.fixture
    def transformers(self):
        pytest.importorskip("accelerate", reason="not installed: accelerate")
        return pytest.importorskip("transformers", reason="not installed: transformers")

    def model(self, transformers):
        torch.manual_seed(0)
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=5))

    def arguments(self, transformers, folder, **more):
        return transformers.TrainingArguments(
            str(folder), max_steps=8, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True,
            optim="sgd", learning_rate=0.05, lr_scheduler_type="constant", max_grad_norm=0.1,
            **{"save_strategy": "no"} | more,
        )  # fmt: skip

    @pytest.mark.parametrize("mode", ["shrink", "mask"])
    def test_it_prunes_in_place(self, transformers, tmp_path, mode):
        from halp_fx.training.huggingface import PrunerCallback

        torch.manual_seed(1)
        data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 5} for i in range(32)]
        examples = {"pixel_values": torch.randn(1, 3, 32, 32)}
        model = self.model(transformers)
        callback = PrunerCallback(0.5, examples, mode=mode, **CALL)
        trainer = transformers.Trainer(
            model, self.arguments(transformers, tmp_path), train_dataset=data, callbacks=[callback]
        )
        trainer.train()
        assert model.halp.met
        assert callback.pruner.decisions == 2
        small = {n: p.shape for n, p in model.named_parameters()}
        assert small == {
            n: p.shape
            for n, p in halp_fx.rewrite(self.model(transformers), callback.pruner.plan, examples).named_parameters()
        }
        assert sum(p.numel() for p in model.parameters()) < 0.7 * sum(
            p.numel() for p in self.model(transformers).parameters()
        )
        assert model(**examples).logits.shape == (1, 5)
        before = copy.deepcopy(model.state_dict())
        trainer.args.max_steps = 1
        trainer.remove_callback(callback)
        trainer.train()
        assert any(not torch.equal(t, before[n]) for n, t in model.state_dict().items())

    def test_half_precision_is_a_forward_of_accelerate_that_is_taken_off(self, transformers, tmp_path):
        """What was saved has no autocast: it computes as the network in the trainer does without accelerate's."""
        from halp_fx.training.huggingface import PrunerCallback

        torch.manual_seed(1)
        data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 5} for i in range(32)]
        examples = {"pixel_values": torch.randn(2, 3, 32, 32)}
        arguments, model = self.arguments(transformers, tmp_path, bf16=True), self.model(transformers)
        trainer = transformers.Trainer(
            model, arguments, train_dataset=data, callbacks=[PrunerCallback(0.5, examples, **CALL)]
        )
        trainer.train()
        halp_fx.save(model, tmp_path / "small.safetensors")
        again = halp_fx.load(tmp_path / "small.safetensors", self.model(transformers)).eval()
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            cast = again(**examples).logits
        with torch.no_grad():
            assert torch.equal(model(**examples).logits, cast.float())
            assert not torch.equal(model(**examples).logits, again(**examples).logits)
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            assert torch.equal(model(**examples).logits, again(**examples).logits)

    def test_a_checkpoint_of_a_network_that_was_cut_is_refused(self, transformers, tmp_path):
        """The Trainer loads it before training begins: torch's "size mismatch" came first."""
        from halp_fx.training.huggingface import PrunerCallback

        torch.manual_seed(1)
        data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 5} for i in range(32)]
        examples = {"pixel_values": torch.randn(1, 3, 32, 32)}
        arguments = self.arguments(transformers, tmp_path)
        arguments.save_strategy, arguments.save_steps = transformers.trainer_utils.SaveStrategy("steps"), 7

        def trainer(model):
            callback = PrunerCallback(0.5, examples, **CALL)
            return transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])

        trainer(self.model(transformers)).train()
        model = self.model(transformers)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(TrainingError, match="does not know what was pruned: train from the start"):
            trainer(model).train(resume_from_checkpoint=True)
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())

    @pytest.mark.parametrize("mode", ["shrink", "mask"])
    @pytest.mark.parametrize("interval", [3, 5], ids=["done", "ended early"])
    def test_the_best_model_is_one_of_the_pruned_network(self, transformers, tmp_path, mode, interval):
        """It was refused: by the loss it is that of the second step, which has the dense widths."""
        from halp_fx.training.huggingface import PrunerCallback

        class Told(transformers.Trainer):
            def evaluate(self, *_, **__):
                losses = {2: 0.1, 4: 0.9, 6: 0.5, 8: 0.8}
                found = {"eval_loss": losses[self.state.global_step]}
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
                return found

        class Kept(transformers.TrainerCallback):
            def on_save(self, args, state, control, model, **_):
                weights[state.global_step] = copy.deepcopy(model.state_dict())

        torch.manual_seed(1)
        weights = {}
        data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 5} for i in range(32)]
        examples = {"pixel_values": torch.randn(1, 3, 32, 32)}
        arguments = self.arguments(
            transformers, tmp_path, load_best_model_at_end=True, metric_for_best_model="loss", eval_steps=2,
            eval_strategy="steps", save_steps=2, save_strategy="steps",
        )  # fmt: skip
        model = self.model(transformers)
        callbacks = [PrunerCallback(0.5, examples, mode=mode, **CALL | {"interval": interval}), Kept()]
        trainer = Told(model, arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks)
        trainer.train()
        # Steps of pruning are taken after 3 and 6, or 5 and, as the eighth is the last, at the end.
        step = 6 if interval == 3 else 8
        assert trainer.state.best_global_step == step
        plan = callbacks[0].pruner.plan
        assert model.halp.met
        if mode == "shrink" and interval == 3:
            assert all(torch.equal(tensor, weights[step][name]) for name, tensor in model.state_dict().items())
        if mode == "mask" and interval == 3:
            dense = self.model(transformers)
            dense.load_state_dict(weights[step])
            want = halp_fx.rewrite(dense, plan, examples).state_dict()
            assert all(torch.equal(tensor, want[name]) for name, tensor in model.state_dict().items())

    def test_what_does_not_go_together_is_said(self, transformers):
        from halp_fx.training.huggingface import PrunerCallback

        held = {"model": None, "optimizer": None}
        with pytest.raises(TrainingError, match=r"wrapped for 2 processes.*mode='mask'"):
            PrunerCallback(0.5).on_train_begin(SimpleNamespace(world_size=2), None, None, **held)
        with pytest.raises(TrainingError, match="does not know what was pruned: train from the start"):
            PrunerCallback(0.5).on_train_begin(
                SimpleNamespace(world_size=1),
                SimpleNamespace(global_step=3),
                None,
                **held,
            )
