"""Takes candidates, returns a `Report`; and shows what is in a network before it is pruned."""
