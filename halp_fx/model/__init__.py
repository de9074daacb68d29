"""What the caller passed: checked, normalised, copied, and left as it was found."""
