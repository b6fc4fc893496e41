"""A run's configuration, from YAML. Unknown keys are refused with the closest match.

The file has ``data``, ``server``, ``client`` (defaults of every client) and ``clients`` (by name, each
overriding the defaults). Everything has a default except ``data.dataset``, the clients and their cuts.
Nothing here needs torch.
"""

from .data import DataSettings
from .learning import MixedPrecision, NetworkSettings, SamplerSettings, ServerSamplerName, TrainingSettings
from .loading import from_mapping, load
from .nodes import ClientSettings, ServerSettings
from .settings import ClientName, Config, unknown_client

__all__ = [
    "ClientName",
    "ClientSettings",
    "Config",
    "DataSettings",
    "MixedPrecision",
    "NetworkSettings",
    "SamplerSettings",
    "ServerSamplerName",
    "ServerSettings",
    "TrainingSettings",
    "from_mapping",
    "load",
    "unknown_client",
]
