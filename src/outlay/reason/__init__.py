"""Better use of many steps: strategies that answer with several calls, within one budget."""

from outlay.reason.base import Answer, Question, Reasoner, Session, Verifier
from outlay.reason.engine import solve, solve_many
from outlay.reason.search import BeamSearch, ParticleFilter
from outlay.reason.voting import BestOfN, Greedy, SelfConsistency, Shortest

__all__ = [
    "Answer",
    "BeamSearch",
    "BestOfN",
    "Greedy",
    "ParticleFilter",
    "Question",
    "Reasoner",
    "SelfConsistency",
    "Session",
    "Shortest",
    "Verifier",
    "solve",
    "solve_many",
]
