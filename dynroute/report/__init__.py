"""What a run did and saved, drawn and written into one HTML file; nothing is measured here."""

from dynroute.report.choose import choose, read_log
from dynroute.report.page import Material, Picture, write_report

__all__ = ["Material", "Picture", "choose", "read_log", "write_report"]
