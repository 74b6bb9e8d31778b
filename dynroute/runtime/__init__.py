"""The inference runtime: a snapshot of a network that computes, per sample, only what its gates open."""

from dynroute.runtime.executor import Runtime, optimize
from dynroute.runtime.results import RunOutput

__all__ = ["RunOutput", "Runtime", "optimize"]
