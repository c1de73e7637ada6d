"""Chip families, one folder each: target.py, lowering, provider.py."""
