"""The HTTP service: it delivers intermediates from one shared batch and receives releases. Extra: serve."""
