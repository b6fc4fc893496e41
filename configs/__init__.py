"""Experiment files; they ship with the package, so ``collafuse train digits.yaml`` works anywhere."""
