"""What a run did and saved: counted, timed, drawn, and written into one HTML file."""

from dynroute.report.collect import Findings, Sample, observe, read_log
from dynroute.report.page import Material, write_report
from dynroute.report.timing import random_patterns, time_routes
from dynroute.report.work import Model, open_model

__all__ = [
    "Findings",
    "Material",
    "Model",
    "Sample",
    "observe",
    "open_model",
    "random_patterns",
    "read_log",
    "time_routes",
    "write_report",
]
