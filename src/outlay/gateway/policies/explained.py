"""What is told of a request under its policy: for people, and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from outlay.gateway.config import ENDPOINTS, Endpoint
from outlay.gateway.money import dollars
from outlay.gateway.policies.tables import NONE
from outlay.worst import Worst

Status = Literal["applies", "skipped", "plain", "refused"]


@dataclass(frozen=True)
class Cut:
    """A text that a policy looks at.

    Args:
        path: where it is in the request.
        tokens: that it has.
        most: that are kept of it; None leaves it as it is.
        why: it is left as it is.
    """

    path: str
    tokens: int
    most: int | None
    why: str = ""


@dataclass(frozen=True)
class Stage:
    """The worst case of one stage.

    Args:
        stage: prompt, reason, decode or fallback.
        method: that runs there.
        worst: tokens and calls, as they are charged.
        note: what they are made of.
    """

    stage: str
    method: str
    worst: Worst
    note: str = ""


@dataclass(frozen=True)
class Reserved:
    """What is set aside before anything is sent.

    Args:
        prompt, output: tokens, over all calls and choices.
        nanousd: what they cost at most; None without a price.
    """

    prompt: int
    output: int
    nanousd: int | None

    @property
    def tokens(self) -> int:
        """All."""
        return self.prompt + self.output

    def text(self) -> str:
        """In words."""
        money = "no price" if self.nanousd is None else f"${dollars(self.nanousd)}"
        return f"{self.tokens:,} tokens ({self.prompt:,} prompt, {self.output:,} output), {money}"


@dataclass(frozen=True)
class Limit:
    """A budget, full as it is at the start of its window.

    Args:
        unit: "tokens" or "nanousd".
        amount: of the budget.
        whole: whether it could ever hold the request with its policy.
        plain: whether it could ever hold the request without.
        outcome: what becomes of the request.
    """

    unit: Literal["tokens", "nanousd"]
    amount: int
    whole: bool
    plain: bool
    outcome: str


@dataclass(frozen=True)
class Explained:
    """What would happen to a request.

    Args:
        endpoint, model, upstream, route: where it goes.
        policy: that is meant; "none" without one.
        status: whether it applies.
        reason: why it is skipped, or the request refused.
        code: of the refusal.
        question: what texts are shortened for.
        texts: those that may be shortened.
        needs: what the methods need of the model.
        offers: what the model's upstream offers.
        stages: worst cases.
        reserved: in all.
        plain: what the same request reserves without a policy.
        limits: given budgets.
        notes: mistakes, and what only a running gateway knows.
    """

    endpoint: Endpoint
    status: Status
    model: str = ""
    upstream: str = ""
    route: str = ""
    policy: str = NONE
    reason: str = ""
    code: str = ""
    question: str = ""
    texts: tuple[Cut, ...] = ()
    needs: tuple[str, ...] = ()
    offers: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    reserved: Reserved | None = None
    plain: Reserved | None = None
    limits: tuple[Limit, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        row = asdict(self)
        for name in ("reserved", "plain"):
            found: Reserved | None = getattr(self, name)
            row[name] = None if found is None else {**asdict(found), "tokens": found.tokens}
        return row

    def lines(self) -> str:
        """For people."""
        about = f"{ENDPOINTS[self.endpoint]}: model {self.model or '?'}"
        if self.route:
            about += f", route {self.route}, upstream {self.upstream}"
        said = [about]
        why = f": {self.reason}" if self.reason else ""
        said.append(
            f"the request is refused{why}"
            if self.status == "refused"
            else "no policy"
            if self.status == "plain"
            else f"policy {self.policy} {self.status}{why}"
        )
        for cut in self.texts:
            to = f"at most {cut.most:,}" if cut.most is not None else f"left as it is ({cut.why})"
            said.append(f"  text {cut.path}: {cut.tokens:,} tokens, {to}")
        if self.needs:
            said.append(f"  needs {', '.join(self.needs)}; offered: {', '.join(self.offers)}")
        for each in self.stages:
            worst, spent = each.worst, ""
            if worst.calls:
                calls = "1 call" if worst.calls == 1 else f"{worst.calls:,} calls"
                spent = (
                    f"at most {worst.prompt:,} prompt and {worst.output:,} output tokens in {calls}"
                )
            parts = "; ".join(part for part in (spent, each.note) if part)
            said.append(f"  {each.stage} ({each.method}): {parts}")
        if self.reserved is not None and self.plain is not None:
            said.append(f"reserved: {self.reserved.text()}")
            if self.reserved != self.plain:
                said.append(f"plain:    {self.plain.text()}")
        for limit in self.limits:
            money = limit.unit == "nanousd"
            amount = f"${dollars(limit.amount)}" if money else f"{limit.amount:,} tokens"
            said.append(f"budget of {amount}: {limit.outcome}")
        return "\n".join([*said, *(f"note: {note}" for note in self.notes)])
