"""A trial of statistics servers: a small mixture of Gaussians per label in place of one. No release of it exists.

``python -m benchmarks.mixtures IMAGES`` says how far down in noise it holds, without a network.
"""
