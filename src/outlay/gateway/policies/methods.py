"""A policy made ready: its methods built once, and checked against the models of its routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from outlay import registry
from outlay.errors import InputError, OutlayError
from outlay.gateway.bounds import counter, load_tokenizer
from outlay.gateway.config import Config, ModelTable, Upstream
from outlay.gateway.policies.tables import NONE, Policy
from outlay.worst import Bounded, BoundedDecoder, Shape, Worst

_LOCAL = frozenset({"append", "stop", "min_tokens", "logprobs", "hidden_states", "seed", "n"})
_OFFERED = {
    "completions": ("append", "stop"),
    "continue_final_message": ("append", "stop"),
    "logprobs": ("logprobs",),
    "min_tokens": ("min_tokens",),
}
_ALWAYS = ("stop", "seed", "n")  # of every server that speaks the protocol


@dataclass(frozen=True)
class Prepared:
    """A policy's methods.

    Args:
        name: of the policy.
        table: its configuration.
        decode: the decoder, None where it has none.
        reason: the reasoner's spec is built per request, since its verifier belongs to one.
    """

    name: str
    table: Policy
    decode: BoundedDecoder | None = None
    reason: Bounded | None = None
    judged: bool = False

    @property
    def solves(self) -> bool:
        """Whether it answers by calls of its own, rather than by the request itself."""
        return self.reason is not None or self.decode is not None

    def needs(self) -> tuple[str, ...]:
        """What the model must offer."""
        both = (each for each in (self.decode, self.reason) if each is not None)
        return tuple(dict.fromkeys(need for each in both for need in each.needs()))

    def shape(self, prompt: int, answer: int, table: ModelTable) -> Shape:
        """A request as its methods see it."""
        shape = Shape(prompt, answer, counter(table.tokenizer))
        if self.decode is None or self.reason is None:
            return shape
        return Shape(prompt, answer, shape.count, decoded=self.decode.worst(shape))

    def worst(self, shape: Shape) -> Worst:
        """The most that its calls can cost."""
        solver = self.reason or self.decode
        return Worst() if solver is None else solver.worst(shape)


def prepare(name: str, policy: Policy) -> Prepared:
    """Build a policy's methods.

    Raises:
        InputError: for methods that do not exist, live in another slot, or do not say what they
            cost at most.
    """
    try:
        if policy.prompt is not None:
            _slot("prompt", policy.prompt)
        decode = reason = None
        judged = False
        if policy.decode is not None:
            decode = registry.create("methods", _slot("decode", policy.decode))
            if not isinstance(decode, BoundedDecoder):
                raise InputError(_unbounded(policy.decode))
            decode.room(_PROBE)
            decode.worst(_PROBE)
        if policy.reason is not None:
            from outlay.comparison import needs

            judged = needs(_slot("reason", policy.reason), "verifier")
            if judged and policy.verifier is None:
                raise InputError(f"{policy.reason} needs a verifier; set verifier = '...'")
            if policy.verifier is not None:
                if not judged:
                    raise InputError(f"{policy.reason} takes no verifier; drop it")
                registry.find("verifiers", registry.parse_spec(policy.verifier)[0])
            given = {"verifier": _NoVerifier()} if judged else {}
            reason = registry.create("methods", policy.reason, given=given)
            if not isinstance(reason, Bounded):
                raise InputError(_unbounded(policy.reason))
            reason.worst(_PROBE)
            if decode is not None and not getattr(reason, "whole_samples", False):
                raise InputError(
                    f"{policy.reason} decodes by itself; drop decode, or vote over whole answers"
                )
    except OutlayError as error:
        raise InputError(f"policies.{name}: {error}") from error
    return Prepared(name, policy, decode, reason, judged)


class _NoVerifier:
    """Stands for the verifier while a policy is checked; every request brings its own."""

    def score(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a request brings its own verifier")


_PROBE = Shape(100, 100, len)


def _slot(slot: str, spec: str) -> str:
    room = registry.find("methods", registry.parse_spec(spec)[0]).room
    if room != slot:
        raise InputError(f"{spec} lives in {room}/ and cannot be the {slot} method")
    return spec


def _unbounded(spec: str) -> str:
    return (
        f"{spec} does not say what it costs at most, so nothing can be reserved for it; "
        "choose another method"
    )


@dataclass
class Catalogue:
    """All policies of a configuration, checked.

    Raises:
        InputError: for a policy that a model of one of its routes cannot serve, with the reason.
    """

    config: Config
    policies: Mapping[str, Prepared] = field(init=False)

    def __post_init__(self) -> None:
        self.policies = {name: prepare(name, p) for name, p in self.config.policies.items()}
        for route_name, route in self.config.routes.items():
            for name in dict.fromkeys((route.policy or NONE, *route.choose)):
                if name != NONE:
                    for model, table in self._models(route.models):
                        self._check(route_name, self.policies[name], model, table)

    def _models(self, patterns: Iterable[str]) -> list[tuple[str, ModelTable]]:
        return [
            (name, table)
            for name, table in self.config.models.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        ]

    def _check(self, route: str, policy: Prepared, model: str, table: ModelTable) -> None:
        upstream = self.config.upstreams[table.upstream]
        lacking = [need for need in policy.needs() if need not in offered(upstream)]
        about = f"routes.{route}: policy {policy.name!r} cannot run on model {model!r}: "
        if lacking:
            raise InputError(
                f"{about}it needs {', '.join(lacking)}, which upstream {table.upstream!r} does not "
                "offer; say so in its offers where it does, or narrow the route's models"
            )
        if policy.solves and upstream.url is not None and table.tokenizer is None:
            raise InputError(
                f"{about}its calls are counted, and the model has no tokenizer; set "
                f"models.{model}.tokenizer"
            )
        bounds = getattr(policy.decode, "server", "client")
        kind = bounds.replace(".", "")
        if bounds != "client" and (upstream.url is None or upstream.served_by != kind):
            raise InputError(
                f"{about}server={bounds!r} sends a limit that only such a server takes; set "
                f"upstreams.{table.upstream}.served_by = {kind!r} where it is one, or drop server"
            )
        continues = "append" in policy.needs() and upstream.url is not None
        only = "continue_final_message" not in upstream.offers
        if continues and only and table.tokenizer_config is None:
            raise InputError(
                f"{about}it continues answers through /completions, which needs the chat "
                f"template; set models.{model}.tokenizer_config"
            )
        if table.tokenizer is not None:
            load_tokenizer(table.tokenizer)
        if table.tokenizer_config is not None and not table.tokenizer_config.is_file():
            raise InputError(f"{about}{table.tokenizer_config} is no file")


def offered(upstream: Upstream) -> frozenset[str]:
    """What models of an upstream can do, in the words of `Capabilities`."""
    if upstream.local is not None:
        return _LOCAL
    return frozenset((*_ALWAYS, *(c for offer in upstream.offers for c in _OFFERED[offer])))
