"""The parts of scripts/benchmark.py: what is measured, what it is compared to, and how the figures are shown."""
