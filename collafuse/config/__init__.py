"""A run's configuration, from YAML. Unknown keys are refused with the closest match.

The file has ``data``, ``server``, ``client`` (defaults of every client) and ``clients`` (by name, each
overriding the defaults). Everything has a default except ``data.dataset``, the clients and their cuts.
Nothing here needs torch.
"""

from .data import DataSettings
from .loading import from_mapping, load
from .settings import (
    ClientName,
    ClientSettings,
    Config,
    MixedPrecision,
    NetworkSettings,
    SamplerName,
    ServerSettings,
    TrainingSettings,
    unknown_client,
)

__all__ = [
    "ClientName",
    "ClientSettings",
    "Config",
    "DataSettings",
    "MixedPrecision",
    "NetworkSettings",
    "SamplerName",
    "ServerSettings",
    "TrainingSettings",
    "from_mapping",
    "load",
    "unknown_client",
]
