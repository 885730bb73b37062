"""Measured speed: what `python tools/benchmark.py NAME` runs. Not part of the installed package."""
