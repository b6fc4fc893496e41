"""What every side shares: noise levels, samplers and the three things that cross a boundary.

Needs only numpy and safetensors. Import the module you mean: ``from collafuse.core import noise``.
"""
