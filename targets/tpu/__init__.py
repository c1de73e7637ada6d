"""The `tpu` family: StableHLO, and executables that Google's own compiler makes of it ahead of time."""
