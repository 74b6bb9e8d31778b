"""Dynamic routing for semantic segmentation, with savings that show on the clock."""

from dynroute import models, routes
from dynroute.cost import Budget
from dynroute.models import create_model, from_pretrained, list_models, load_official
from dynroute.objective import objective
from dynroute.runtime import optimize

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "create_model",
    "from_pretrained",
    "list_models",
    "load_official",
    "models",
    "objective",
    "optimize",
    "routes",
]
