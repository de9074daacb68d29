"""Which widths are offered: blocks as large as the steps of what layers cost."""

import pytest
import torch
from test_published import IMAGE, Stairs, net, request
from test_report import latency

import halp_fx
from halp_fx.pruning.blocks import block_sizes, in_blocks
from halp_fx.pruning.choosing import options_of
from halp_fx.pruning.goals import make_goals
from halp_fx.types import Plan


def test_whole_blocks_and_what_is_there():
    options = {"a": (8, 16, 24, 32), "b": (8, 16, 20), "c": (4,)}
    assert in_blocks(options, {"a": 16, "b": 16}) == {"a": (16, 32), "b": (16, 20), "c": (4,)}


def sizes(timer=None, **settings):
    goals = make_goals(0.5, "macs" if timer is None else latency(timer))
    asked = request(goals=goals, **settings)
    coupling = halp_fx.channel_groups(net(128), IMAGE)
    return block_sizes(asked, coupling, options_of(coupling, Plan(), asked))


def test_published_methods_take_the_steps_of_a_staircase_or_eighths():
    found = sizes(Stairs())
    assert {name: size for name, size in found.items() if name != "stem.0"} == {
        name: 32 for name in found if name != "stem.0"
    }
    assert sizes() == {name: 2 if name == "stem.0" else 16 for name in found}
    assert sizes(Stairs(), solver="mdp") == found
    assert sizes(Stairs(), round_to=8) == {}


def test_staircases_are_measured_at_every_width_with_the_input_as_it_is():
    seen = []

    class Clock(Stairs):
        def __call__(self, call, device, effort):
            shapes = [tuple(a.shape[:2]) for a in call.args if isinstance(a, torch.Tensor) and a.ndim == 4]
            seen.extend(shapes[1:2])
            return super().__call__(call, device, effort)

    coupling = halp_fx.channel_groups(net(128), IMAGE)
    cost = latency(Clock())
    (group,) = (g.name for g in coupling.prunable if g.name == "blocks.1.one.0")
    found = {t.name: t for t in cost.staircases(coupling, {group: (32, 64, 96, 128)})}
    (table,) = found.values()
    assert seen == [(32, 128), (64, 128), (96, 128), (128, 128)]
    assert table.at([32, 64, 96, 128], [0])[:, 0] == pytest.approx([1.36, 2.72, 4.08, 5.44])
    assert cost.staircases(coupling, {group: (32, 64)})
    assert len(seen) == 4, "what is known is not measured again"
