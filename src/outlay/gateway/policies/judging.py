"""A verifier whose scores come from the scoring processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from outlay import registry
from outlay.gateway.policies.scoring import Scorers
from outlay.gateway.policies.tables import Policy
from outlay.ledger import Ledger
from outlay.models.base import Account
from outlay.reason.base import Question


@dataclass(frozen=True)
class Judge:
    """The verifier of one request's method; called in the method's thread.

    Args:
        scorers: the processes.
        loop: that they are awaited on.
        table: names the verifier.
    """

    scorers: Scorers
    loop: asyncio.AbstractEventLoop
    table: Policy

    def score(
        self,
        questions: Sequence[Question],
        paths: Sequence[Sequence[str]],
        known: Sequence[Sequence[float]],
        *,
        accounts: Sequence[Account],
    ) -> list[list[float]]:
        """As `Verifier.score`.

        Raises:
            ScoringError: if the processes do not answer.
        """
        assert self.table.verifier is not None
        job = {
            "do": "judge",
            "verifier": self.table.verifier,
            "scorer": self.table.scorer,
            "method": registry.parse_spec(self.table.verifier)[0],
            "questions": [
                {"text": each.text, "kind": each.kind, "delimiter": each.delimiter}
                for each in questions
            ],
            "paths": [list(path) for path in paths],
            "known": [list(scores) for scores in known],
        }
        made = asyncio.run_coroutine_threadsafe(self.scorers.run(job), self.loop).result()
        for account, ledger in zip(accounts, made["ledgers"], strict=True):
            account.ledger.extend(Ledger.from_dict(ledger))
        scores: list[list[float]] = made["scores"]
        return scores
