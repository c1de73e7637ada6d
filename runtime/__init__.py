"""Stage 2: load an artifact, run it, generate with it, serve it."""
