"""Quiet, offline libraries for the importers' tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
