"""Training and evaluation."""

from dynroute.measure.evaluate import evaluate
from dynroute.measure.metrics import confusion_matrix, scores
from dynroute.train.config import Config, list_configs, load_config
from dynroute.train.loop import train
from dynroute.train.parse import ConfigError

__all__ = ["Config", "ConfigError", "confusion_matrix", "evaluate", "list_configs", "load_config", "scores", "train"]
