"""``python -m cli`` is ``collafuse``, so that torchrun can start it."""

from .app import main

main()
