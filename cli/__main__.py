"""``collafuse``; as ``python -m cli``, torchrun can start it."""

import sys


def main() -> None:
    """Load the command line and run it. Ctrl-C in the tenths of a second that loading takes ends as it does later."""
    try:
        from .app import main as run
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
