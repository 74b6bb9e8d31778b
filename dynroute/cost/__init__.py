"""What a route costs: the paper's tables, the budget loss."""

from dynroute.cost.budget import Budget
from dynroute.cost.tables import CostTables, cost_tables, space_macs

__all__ = ["Budget", "CostTables", "cost_tables", "space_macs"]
