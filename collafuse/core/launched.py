"""Whether torchrun started this process, in words that need no torch."""

from __future__ import annotations

import os


def processes_launched() -> int:
    """How many processes of this command torchrun started; 1 where it did not."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1
