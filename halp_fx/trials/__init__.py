"""Takes a model, returns a `Coupling` that holds: what its forward takes for constant is mended or frozen."""
