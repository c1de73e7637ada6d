"""The `cpu` family: native code made ahead of time."""
