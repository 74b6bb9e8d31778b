"""What a run did and saved, drawn and written into one HTML file; nothing is measured here."""

from dynroute.report.choose import read_log
from dynroute.report.page import Material, write_report

__all__ = ["Material", "read_log", "write_report"]
