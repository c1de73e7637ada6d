"""The `reference` family."""
