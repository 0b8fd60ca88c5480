"""Plan-and-Budget (arXiv 2505.16122): plan sub-questions, then share one budget among them."""

from outlay.reason.plan_and_budget.allocation import allocate, uniform
from outlay.reason.plan_and_budget.bam import Curve, closed_form, fit, optimal
from outlay.reason.plan_and_budget.method import PlanAndBudget
from outlay.reason.plan_and_budget.planner import ModelPlanner, NoPlanner, Planner
from outlay.reason.plan_and_budget.plans import Plan, PlanCache, neutral
from outlay.reason.plan_and_budget.schedules import SCHEDULES, Schedule, position_weights
from outlay.reason.plan_and_budget.structural import StructuralPlanner

__all__ = [
    "SCHEDULES",
    "Curve",
    "ModelPlanner",
    "NoPlanner",
    "Plan",
    "PlanAndBudget",
    "PlanCache",
    "Planner",
    "Schedule",
    "StructuralPlanner",
    "allocate",
    "closed_form",
    "fit",
    "neutral",
    "optimal",
    "position_weights",
    "uniform",
]
