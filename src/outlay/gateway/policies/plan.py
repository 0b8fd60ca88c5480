"""What a policy makes of one request: whether it applies, and what has to be reserved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from outlay.gateway.bounds import Wanted, counter
from outlay.gateway.config import ModelTable, Route
from outlay.gateway.policies.books import Books
from outlay.gateway.policies.methods import Prepared
from outlay.gateway.policies.tables import NONE
from outlay.gateway.problems import RequestError, invalid
from outlay.gateway.store.books import Ask, Refusal
from outlay.worst import Shape, Worst

_EXTRAS = 64  # tokens that a call's own fields (seed, temperature, stops) may weigh, at least
_FIELDS = (
    "max_completion_tokens 2147483647 temperature 0.8 top_p seed 2147483647 stop min_tokens 65536 "
    "continue_final_message True add_generation_prompt False assistant logprobs True"
)
PASSED = ("user", "metadata", "store")  # fields that go with every call
# What a method's own calls can honour; a request with anything else is sent as it is.
_HONOURED = frozenset(
    {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed"}
    | {"stop", "stream", "stream_options", "n", "best_of", *PASSED}
)
_TOOLS = ("tools", "functions", "tool_choice", "function_call")
_PARTS = ("role", "content")
_PLAIN = frozenset({"text", "input_text", "output_text", "refusal"})


@dataclass
class Plan:
    """A policy and one request.

    Args:
        policy: that applies; None: it was skipped, and `books` say why.
        wanted: the request as it came.
        shape: the request as the methods see it.
        worst: the most that the methods' calls cost.
        books: what will be told and kept.
        question: that the request named.
        strict: refuse what cannot be served, rather than skip the policy.
    """

    policy: Prepared | None
    wanted: Wanted
    shape: Shape
    worst: Worst
    books: Books
    question: str = ""
    strict: bool = False

    @property
    def solves(self) -> bool:
        """Whether methods answer by calls of their own."""
        return self.policy is not None and self.policy.solves

    def asking(self, ask: Ask) -> Ask:
        """The reservation: all of the methods' calls, and the request itself as a fallback."""
        if self.policy is None or not self.policy.solves:
            return ask
        plain = Worst(self.wanted.prompt, self.wanted.output * self.wanted.choices, 1)
        total = self.worst + plain if self.policy.table.fallback else self.worst
        return replace(
            ask,
            prompt=total.prompt,
            output=total.output,
            choices=1,
            least=total.output,
            requests=total.calls,
        )

    def spares(self, refused: Refusal) -> bool:
        """Whether the budget that refused the whole may have room for the request alone."""
        return self.solves and not self.strict and refused.kind in ("exhausted", "spent", "busy")

    def again(self) -> None:
        """Begin another attempt of the request."""
        self.books.again()

    def skip(self, reason: str) -> None:
        """Go on without the policy.

        Raises:
            RequestError: if the route wants such requests refused.
        """
        if self.strict:
            raise RequestError(
                400,
                f"policy {self.books.policy!r} cannot take this request ({reason})",
                code="policy_unsupported",
            )
        self.policy, self.worst = None, Worst()
        self.books.status, self.books.reason = "skipped", reason


def make(
    policies: Mapping[str, Prepared], route: Route, wanted: Wanted, table: ModelTable
) -> Plan | None:
    """The plan of a request; None where no policy is meant.

    Raises:
        RequestError: for a choice that the route does not allow, or a request that its policy
            cannot take and its route wants refused.
    """
    name, question = _choice(route, wanted)
    if name == NONE:
        return None
    policy = policies[name]
    shape = policy.shape(wanted.prompt + _extras(policy, table, question), wanted.output, table)
    plan = Plan(
        policy,
        wanted,
        shape,
        policy.worst(shape),
        Books(name),
        question,
        route.unsupported == "reject",
    )
    if reason := unsupported(policy, wanted):
        plan.skip(reason)
    return plan


def _extras(policy: Prepared, table: ModelTable, question: str) -> int:
    """Tokens that a call's prompt may have beyond those of the request's own."""
    count = counter(table.tokenizer)
    # A planner reads the question beside the prompt; an answer that is continued is a message.
    continued = table.template_tokens if "append" in policy.needs() else 0
    return max(_EXTRAS, count(_FIELDS)) + count(question) + continued


def _choice(route: Route, wanted: Wanted) -> tuple[str, str]:
    """The policy's name and the question that the request names."""
    default, chosen = route.policy or NONE, wanted.chosen
    if chosen is None:
        return default, ""
    name = default if chosen.policy is None else chosen.policy
    if name != default and name not in route.choose:
        allowed = ", ".join(route.choose) or "nothing"
        raise invalid(
            f"{name!r} is no policy that may be chosen here; this route offers {allowed}",
            "outlay",
            "policy_not_allowed",
        )
    return name, chosen.question


def unsupported(policy: Prepared, wanted: Wanted) -> str:
    """Why a policy cannot take a request; "" where it can."""
    fields = wanted.fields
    if wanted.endpoint == "embeddings" or (policy.solves and wanted.endpoint != "chat"):
        return "endpoint"
    if wanted.choices > 1:
        return "choices"
    if any(fields.get(name) for name in _TOOLS):
        return "tools"
    if _schema(fields):
        return "schema"
    if _media(fields):
        return "images"
    if policy.solves:
        for name, value in fields.items():
            if name not in _HONOURED and value is not None:
                return f"field {name[:40]}"
        if reason := next(filter(None, map(_not_plain, fields["messages"])), ""):
            return reason
    if getattr(policy.reason, "n", 1) > 1 and fields.get("temperature") == 0:
        return "temperature"  # all samples would be the same
    return ""


def _schema(fields: Mapping[str, Any]) -> bool:
    text = fields.get("text")
    formats = (
        fields.get("response_format"),
        text.get("format") if isinstance(text, dict) else None,
    )
    return any(isinstance(each, dict) and each.get("type") != "text" for each in formats)


def _media(fields: Mapping[str, Any]) -> bool:
    many = fields.get("messages") or fields.get("input")
    for message in many if isinstance(many, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") not in _PLAIN:
                return True
    return False


def _not_plain(message: Mapping[str, Any]) -> str:
    """What makes a message more than a role and a text: tools, or a part such as a name."""
    if message.get("role") not in ("system", "developer", "user", "assistant"):
        return "tools"
    if message.get("tool_calls") or message.get("function_call"):
        return "tools"
    return "message" if any(v for name, v in message.items() if name not in _PARTS) else ""
