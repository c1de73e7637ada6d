"""Functions a model may call: how its prompt offers them, how it writes calls, and how they are read."""
