"""What the training recipes share: processes, data, checkpoints."""
