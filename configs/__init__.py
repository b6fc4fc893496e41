"""Experiment files that ship with the package; ``collafuse train NAME.yaml`` finds them by name too."""
