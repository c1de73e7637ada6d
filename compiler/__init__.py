"""Stage 1: from a published model to an artifact. Needs the extra ``[compile]``."""
