"""Dynamic routing for semantic segmentation, with savings that show on the clock."""

from dynroute import models, ops, planner, routes
from dynroute.cost import Budget
from dynroute.models import NetworkConfig, create_model, from_pretrained, list_models, load_official
from dynroute.objective import objective
from dynroute.runtime import RunOutput, Runtime, optimize
from dynroute.version import __version__

__all__ = [
    "Budget",
    "NetworkConfig",
    "RunOutput",
    "Runtime",
    "__version__",
    "create_model",
    "from_pretrained",
    "list_models",
    "load_official",
    "models",
    "objective",
    "ops",
    "optimize",
    "planner",
    "routes",
]
