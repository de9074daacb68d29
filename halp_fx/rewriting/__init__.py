"""Takes a model, its `Coupling` and a `Plan`, returns the smaller network, verified; or its oracle, the zeroed twin."""
