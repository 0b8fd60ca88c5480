"""DynaICL: as many demonstrations as each input needs, under one budget (arXiv 2305.11170)."""

from outlay.prompt.dynaicl.choices import Chooser
from outlay.prompt.dynaicl.contexts import UniformDemonstrations
from outlay.prompt.dynaicl.controller import Controller, Prediction
from outlay.prompt.dynaicl.method import DynaICL
from outlay.prompt.dynaicl.prompts import Example, Template
from outlay.prompt.dynaicl.serving import ModelGeneralist, Saving, Served, Workload, saving
from outlay.prompt.dynaicl.stream import Price, Stream
from outlay.prompt.dynaicl.table import Recipe, Table, collect, exact_match, targets

__all__ = [
    "Chooser",
    "Controller",
    "DynaICL",
    "Example",
    "ModelGeneralist",
    "Prediction",
    "Price",
    "Recipe",
    "Saving",
    "Served",
    "Stream",
    "Table",
    "Template",
    "UniformDemonstrations",
    "Workload",
    "collect",
    "exact_match",
    "saving",
    "targets",
]
