"""Methods to compare with, on the same networks, steps and data: any configuration with another ``method``.

One file per method. They reuse the project's loop, loss and samplers and stand apart from the main path: nothing of it
imports them.
"""

from .methods import METHODS, check_trained, generate, train

__all__ = ["METHODS", "check_trained", "generate", "train"]
