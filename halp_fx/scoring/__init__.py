"""Takes a model, its `Coupling` and data, returns a `Saliency`: what each channel is worth."""
