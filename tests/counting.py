"""A backend of torch.compile that compiles nothing, so that tests can count."""

from __future__ import annotations


class Counting:
    """Runs the graph as it is, counts graphs and calls of them, and keeps the options of the last one."""

    def __init__(self):
        self.graphs = self.calls = 0
        self.options = None

    def __call__(self, graph, example, config_patches=None):
        self.graphs, self.options = self.graphs + 1, config_patches

        def run(*args):
            self.calls += 1
            return graph(*args)

        return run
