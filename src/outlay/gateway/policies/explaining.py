"""What would happen to a request under its policy, and what it could cost; nothing is sent.

    from outlay.gateway.policies.explaining import explain
    print(explain("gateway.toml", {"model": "m", "messages": [...]}).lines())

Everything is asked of what serves requests: the same reading, bounds, plan and reservation. No
model is loaded; tokenizers are, where a configuration names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from outlay.errors import InputError
from outlay.gateway.bounds import Choice, Wanted, bound, counter, parse
from outlay.gateway.config import ENDPOINTS, Config, Endpoint, ModelTable, Route, read
from outlay.gateway.money import nano
from outlay.gateway.policies import texts
from outlay.gateway.policies.explained import Cut, Explained, Limit, Reserved, Stage, Status
from outlay.gateway.policies.methods import Catalogue, offered
from outlay.gateway.policies.plan import Plan, make
from outlay.gateway.policies.tables import NONE
from outlay.gateway.problems import RequestError
from outlay.gateway.store.books import Ask, Key
from outlay.worst import Worst

_NOBODY = Key(id="", name="explain", role="caller", owner="", team="", digest="")


def explain(
    config: str | Path | Config,
    request: Mapping[str, Any] | bytes,
    *,
    endpoint: Endpoint = "chat",
    policy: str | None = None,
    tokens: Sequence[int] = (),
    usd: Sequence[str] = (),
) -> Explained:
    """Say what a gateway would do with a request.

    Args:
        config: its configuration.
        request: the body, as a client sends it.
        endpoint: that it is sent to.
        policy: assume this one, whatever the route and the request say; "none" for none.
        tokens: budgets to try, in tokens.
        usd: budgets to try, in US dollars.

    Raises:
        InputError: for a configuration that no gateway would start with, a policy or an endpoint
            that does not exist, or budgets that are none.
    """
    given = config if isinstance(config, Config) else read(config)
    if endpoint not in ENDPOINTS:
        raise InputError(f"endpoint={endpoint!r}; choose {', '.join(ENDPOINTS)}")
    if policy is not None and policy != NONE and policy not in given.policies:
        known = ", ".join(given.policies) or "none"
        raise InputError(f"there is no policy {policy!r}; policies are: {known}")
    if any(amount < 0 for amount in tokens):
        raise InputError("a budget of tokens is >= 0")
    amounts = [*(("tokens", each) for each in tokens), *(("nanousd", nano(each)) for each in usd)]
    try:
        raw = request if isinstance(request, bytes) else orjson.dumps(request)
    except TypeError as error:
        raise InputError(f"the request cannot be written as JSON ({error})") from error
    explainer = _Explainer(given, endpoint, policy, amounts)
    try:
        return explainer.run(raw)
    except RequestError as problem:
        code = problem.code or ""
        return Explained(endpoint, "refused", **explainer.told, reason=problem.message, code=code)


class _Explainer:
    """One request on its way; `told` is what is known where it is refused."""

    def __init__(
        self,
        config: Config,
        endpoint: Endpoint,
        policy: str | None,
        amounts: Sequence[tuple[Any, int]],
    ) -> None:
        self.config, self.endpoint, self.assumed = config, endpoint, policy
        self.amounts = amounts
        self.told: dict[str, Any] = {}

    def run(self, raw: bytes) -> Explained:
        config = self.config
        wanted = parse(self.endpoint, raw, config.server.max_depth)
        self.told["model"] = wanted.model
        table = config.models.get(wanted.model)
        if table is None:
            known = ", ".join(config.models) or "none"
            raise RequestError(
                404,
                f"the model {wanted.model[:100]!r} does not exist here; models are: {known}",
                code="model_not_found",
            )
        self.told["upstream"] = table.upstream
        found = config.route(wanted.model, self.endpoint)
        if found is None:
            raise RequestError(403, f"no route takes {wanted.model[:100]!r} here", code="no_route")
        name, route = found
        self.told["route"] = name
        wanted, route, notes = self._assume(wanted, name, route)
        wanted = bound(wanted, table, route, config.server.max_tokens)
        plan = make(Catalogue(self.config).policies, route, wanted, table)
        ask = self._ask(wanted, table, name)
        if plan is None:
            return self._explained("plain", "", None, ask, ask, notes)
        self.told["policy"] = plan.books.policy
        return self._planned(plan, table, ask, notes)

    def _assume(
        self, wanted: Wanted, name: str, route: Route
    ) -> tuple[Wanted, Route, tuple[str, ...]]:
        """As if the route offered the policy, and the request chose it."""
        policy = self.assumed
        if policy is None:
            return wanted, route, ()
        question = "" if wanted.chosen is None else wanted.chosen.question
        wanted = replace(wanted, chosen=Choice(policy=policy, question=question))
        if policy in (route.policy or NONE, *route.choose):
            return wanted, route, ()
        route = route.model_copy(update={"choose": (*route.choose, policy)})
        routes = {**self.config.routes, name: route}
        self.config = self.config.model_copy(update={"routes": routes})
        return (
            wanted,
            route,
            (f"routes.{name} does not offer {policy!r}; this assumes that it did",),
        )

    def _ask(self, wanted: Wanted, table: ModelTable, route: str) -> Ask:
        return Ask(
            id="",
            key=_NOBODY,
            model=wanted.model,
            route=route,
            endpoint=self.endpoint,
            upstream=table.upstream,
            prompt=wanted.prompt,
            output=wanted.output,
            choices=wanted.choices,
            price=table.price,
        )

    def _planned(
        self, plan: Plan, table: ModelTable, plain: Ask, notes: tuple[str, ...]
    ) -> Explained:
        reserved = plan.asking(plain)
        if plan.policy is None:
            return self._explained("skipped", plan.books.reason, plan, reserved, plain, notes)
        policy = plan.policy
        self.told["needs"] = policy.needs()
        self.told["offers"] = tuple(sorted(offered(self.config.upstreams[table.upstream])))
        self.told["stages"] = self._stages(plan)
        status: Status = "applies"
        reason = ""
        if policy.table.prompt is not None:
            self.told["question"], self.told["texts"] = self._texts(plan, table)
            cuts: tuple[Cut, ...] = self.told["texts"]
            if not any(cut.most for cut in cuts) and not policy.solves:
                status = "skipped"
                reason = next((cut.why for cut in cuts if cut.why.startswith("too")), "short")
            seconds = self.config.scoring.seconds
            notes += (
                f"texts are shortened by this machine's own scorer, not charged, in at most "
                f"{seconds:g} s; the whole prompt is reserved all the same",
            )
        if policy.solves and not policy.table.fallback:
            notes += ("without a fallback a failure of the methods is an error to the caller",)
        return self._explained(status, reason, plan, reserved, plain, notes)

    def _texts(self, plan: Plan, table: ModelTable) -> tuple[str, tuple[Cut, ...]]:
        assert plan.policy is not None
        count, most = counter(table.tokenizer), self.config.scoring.max_chars
        question, pieces = texts.find(plan.wanted.endpoint, plan.wanted.fields, plan.question)
        cuts = []
        for piece in pieces:
            tokens = count(piece.text)
            kept, why = plan.policy.table.kept(tokens), "short"
            if len(piece.text) > most:
                kept, why = None, "too long to score"
            path = ".".join(map(str, piece.path))
            cuts.append(Cut(path, tokens, kept, "" if kept is not None else why))
        return question, tuple(cuts)

    def _stages(self, plan: Plan) -> tuple[Stage, ...]:
        policy, stages = plan.policy, list[Stage]()
        assert policy is not None
        table = policy.table
        if table.prompt is not None:
            stages.append(Stage("prompt", table.prompt, Worst(), "scored here, charged to nobody"))
        if table.reason is not None:
            note = "all of its answers"
            if plan.shape.decoded is not None and table.decode is not None:
                each = plan.shape.decoded
                note = (
                    f"each answer by {table.decode}: {each.prompt:,} prompt and {each.output:,} "
                    f"output tokens in {each.calls:,} calls"
                )
            stages.append(Stage("reason", table.reason, plan.worst, note))
        elif table.decode is not None:
            stages.append(Stage("decode", table.decode, plan.worst))
        if policy.solves and table.fallback:
            wanted = plan.wanted
            sent = Worst(wanted.prompt, wanted.output * wanted.choices, 1)
            stages.append(Stage("fallback", "plain", sent, "sent only where the methods fail"))
        return tuple(stages)

    def _explained(
        self,
        status: Status,
        reason: str,
        plan: Plan | None,
        reserved: Ask,
        plain: Ask,
        notes: tuple[str, ...],
    ) -> Explained:
        limits = tuple(
            self._limit(unit, amount, plan, reserved, plain) for unit, amount in self.amounts
        )
        if limits and reserved != plain and not any(limit.whole for limit in limits):
            notes += (
                f"a mistake: policy {self.told['policy']!r} reserves more than any of these "
                "budgets holds, so it can never run; lower its n or max_think, the route's "
                "max_output, or raise a budget",
            )
        return Explained(
            self.endpoint,
            status,
            **self.told,
            reason=reason,
            reserved=_reserved(reserved),
            plain=_reserved(plain),
            limits=limits,
            notes=notes,
        )

    def _limit(self, unit: Any, amount: int, plan: Plan | None, reserved: Ask, plain: Ask) -> Limit:
        if unit == "nanousd" and plain.price is None:
            return Limit(unit, amount, False, False, "refused: the model has no price")
        whole = reserved.need(unit, reserved.output) <= amount
        alone = plain.need(unit, plain.output) <= amount
        if whole:
            outcome = "holds it"
        elif alone and plan is not None and not plan.strict:
            outcome = "could never hold the policy: it is skipped (budget), the plain request fits"
        elif alone:
            outcome = "could never hold the policy: refused, as the route wants it"
        else:
            outcome = "could never hold it: refused"
        return Limit(unit, amount, whole, alone, outcome)


def _reserved(ask: Ask) -> Reserved:
    money = None if ask.price is None else ask.nanousd(ask.output)
    return Reserved(ask.prompt, ask.output * ask.choices, money)
