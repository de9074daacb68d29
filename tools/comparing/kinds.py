"""Kinds of small networks that nothing in halp_fx was tuned on, each with its data, loss, figure and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from . import kinds_convolutions as nets
from . import kinds_data as drawn
from . import kinds_mixers as mixers
from .data import Data
from .tasks import explained, overlap


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of network and what it is trained for.

    Attributes:
        network: makes one.
        loss: of outputs and targets.
        metric: of outputs and targets, larger for a better network, in percent.
        adam: AdamW instead of SGD: networks without batch norms, and those with layer norms.
        epochs: of the dense network; `tuning` of the fine-tuning.
        batch: samples in a step, of training and of what a method may look at; `looked_at` samples of those.
        rate: of the dense network; half of it of the fine-tuning.
        heads: layers that put out, where it is not the last one alone.
        held_out: no decision was to be made by it.
    """

    network: Callable[[], nn.Module]
    data: Callable[[], Data] = drawn.classes
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy
    metric: Callable[[Any, Tensor], float] = drawn.right
    adam: bool = False
    epochs: int = 12
    tuning: int = 4
    batch: int = 64
    looked_at: int = 768
    rate: float = 0.1
    heads: tuple[str, ...] = ()
    held_out: bool = False


def _centred(network: Callable[[], nn.Module], epochs: int = 16, **other: Any) -> Kind:
    return Kind(network, drawn.centred, adam=True, epochs=epochs, tuning=5, **other)


KINDS: Mapping[str, Kind] = {
    "vgg_plain": Kind(nets.PlainVgg, adam=True),
    "vgg_gn": Kind(nets.GroupNormVgg, adam=True),
    "ghost": Kind(nets.GhostNet),
    "mixer": _centred(mixers.Mixer),
    "mixer_neck": _centred(mixers.NeckedMixer),
    "mixer_metric": _centred(mixers.EmbeddingMixer, loss=drawn.contrastive, metric=drawn.by_angle),
    "hybrid": _centred(mixers.Hybrid, epochs=14),
    "swin": _centred(mixers.Swin),
    "metric": Kind(nets.Embedding, loss=drawn.contrastive, metric=drawn.by_angle),
    "proto": Kind(nets.Prototypes, loss=drawn.prototypes, metric=drawn.by_distance),
    "two_tasks": Kind(
        nets.TwoTasks, drawn.classes_and_quarters, drawn.both, drawn.both_right, heads=("which.4", "where.4")
    ),
    "autoenc": Kind(nets.Autoencoder, drawn.cleaned, F.mse_loss, explained, adam=True),
    "repvgg": Kind(nets.RepVgg),
    "deep": Kind(nets.Deep, epochs=9, tuning=3),
    "bn8": Kind(nets.Blocks, batch=8, looked_at=512, epochs=6, tuning=2, rate=0.02),
    "fpn": Kind(nets.Pyramid, drawn.pixels, metric=overlap, held_out=True),
    "nfnet": Kind(nets.NormaliserFree, adam=True, held_out=True),
    "conv1d": Kind(nets.Sequences, drawn.sequences, held_out=True),
    "shared": Kind(nets.SharedWeights, held_out=True),
    "convgru": Kind(nets.ConvGru, adam=True, held_out=True),
    "tiny_head": Kind(nets.TinyHead, drawn.forty, held_out=True),
}
