"""Whatever measures: time, work, quality; it draws nothing."""

from dynroute.measure.evaluate import evaluate
from dynroute.measure.metrics import confusion_matrix, scores
from dynroute.measure.observe import observe
from dynroute.measure.opened import Model, open_model
from dynroute.measure.results import Bench, Evaluation, Findings, RouteTimes, Sample, Spread
from dynroute.measure.timing import random_patterns, time_routes

__all__ = [
    "Bench",
    "Evaluation",
    "Findings",
    "Model",
    "RouteTimes",
    "Sample",
    "Spread",
    "confusion_matrix",
    "evaluate",
    "observe",
    "open_model",
    "random_patterns",
    "scores",
    "time_routes",
]
