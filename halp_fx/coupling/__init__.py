"""Takes a `Traced`, returns a `Coupling`: which channels are kept or removed together."""
