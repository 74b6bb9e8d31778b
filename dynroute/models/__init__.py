"""The network's definition: wiring, cells, gates, stem, decoder, names and checkpoints."""

from dynroute.models.config import NetworkConfig
from dynroute.models.network import DynamicNetwork, Output
from dynroute.models.pretrained import from_pretrained, load_official
from dynroute.models.zoo import PUBLISHED_BUDGETS, create_model, list_models

__all__ = [
    "PUBLISHED_BUDGETS",
    "DynamicNetwork",
    "NetworkConfig",
    "Output",
    "create_model",
    "from_pretrained",
    "list_models",
    "load_official",
]
