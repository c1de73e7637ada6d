"""The `null` family."""
