"""Stack: what runs on one example, at most one method a slot.

Slots compose in the order in which a token lives: a prompt method shortens the context, a vision
method the image, a cache method what is kept of both; a decoder produces the answer, or a reason
method does so with many calls. A reason method that samples whole answers (voting, best of n) has
them decoded by the stack's decoder; one that grows partial solutions decodes by itself, so it takes
the place of a decoder and of a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from outlay import registry
from outlay.budget import Budget
from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.registry import SLOTS, Slot

NOTHING = "full"


@dataclass(frozen=True)
class Stack:
    """At most one method a slot; an empty stack is the model as it is, on the full prompt.

    Args:
        prompt: a compressor of the context.
        vision: a pruner of image tokens.
        decode: a decoder.
        cache: a KV cache.
        reason: a solver.

    Raises:
        InputError: if a reason method that decodes by itself comes with a decode or cache method.
    """

    prompt: Any = None
    vision: Any = None
    decode: Any = None
    cache: Any = None
    reason: Any = None

    def __post_init__(self) -> None:
        other = self.decode if self.decode is not None else self.cache
        own = self.reason is not None and not getattr(self.reason, "whole_samples", False)
        if other is not None and own:
            raise InputError(
                f"{registry.label(self.reason)} decodes by itself; "
                f"drop {registry.label(other)} or the reason method"
            )

    @classmethod
    def parse(cls, spec: str, *, given: Mapping[str, Any] | None = None) -> Stack:
        """Build a stack from specs joined by "+", for instance "longcodezip+m1:n_wait=2".

        Args:
            spec: method specs (see `registry.parse_spec`); "full" is the empty stack.
            given: objects for fields that a spec cannot write (see `registry.create`).

        Raises:
            InputError: for unknown methods or two methods of one slot.
        """
        if spec.strip() == NOTHING:
            return cls()
        chosen: dict[Slot, Any] = {}
        for part in registry.split_spec(spec, "+"):
            entry = registry.find("methods", registry.parse_spec(part)[0])
            slot = next((name for name in SLOTS if name == entry.room), None)
            if slot is None:
                raise InputError(
                    f"{entry.slug} lives in {entry.room}/, which is no slot of a stack; "
                    f"slots are {', '.join(SLOTS)}"
                )
            if slot in chosen:
                raise InputError(
                    f"{spec!r} has two methods for the slot {slot!r}; keep one of them"
                )
            chosen[slot] = registry.create("methods", part, given=given)
        return cls(**chosen)

    def label(self) -> str:
        """The spec that makes this stack again, as far as a spec can say it."""
        chosen = [getattr(self, field.name) for field in fields(self)]
        return "+".join(registry.label(m) for m in chosen if m is not None) or NOTHING

    def decoder(self) -> Any:
        """What answers a prompt: the decode method, over the cache method where there is one.

        None where the stack has neither, so that the model itself answers.

        Raises:
            CapabilityError: for a decoder that cannot run over a cache method.
        """
        if self.cache is None:
            return self.decode
        from outlay.cache.base import Over
        from outlay.cache.loop import CachedDecoder

        if self.decode is None:
            return CachedDecoder(self.cache)
        if not isinstance(self.decode, Over):
            raise CapabilityError(
                f"{registry.label(self.decode)} keeps its own cache; "
                f"drop {registry.label(self.cache)}, or choose another decoder"
            )
        return self.decode.over(self.cache)

    def pruner(self, budget: Budget, total: int, layers: int) -> Any:
        """The vision method under a budget: what to call with the model; None for none.

        Args:
            budget: one that counts visual tokens fixes how many; under any other the method's own
                knobs do.
            total: visual tokens of one image.
            layers: of the decoder.

        Raises:
            CapabilityError: for a method that cannot take a number of tokens.
        """
        if self.vision is not None and not callable(self.vision):
            raise CapabilityError(
                f"{registry.label(self.vision)} is a model of its own and prunes no other; see its "
                "page for how to use it"
            )
        if self.vision is None or budget.counts != "vision" or budget.tokens is None:
            return self.vision
        from outlay.vision.base import Budgeted

        if not isinstance(self.vision, Budgeted):
            raise CapabilityError(
                f"{registry.label(self.vision)} cannot be told a number of visual tokens; run it "
                "without budgets, under its own knobs"
            )
        return self.vision.within(budget.tokens, total, layers)

    @property
    def temperature(self) -> float:
        """The usual sampling temperature: 0, and 0.8 for methods that draw several samples."""
        return 0.0 if self.reason is None else 0.8

    def budgets(self, budget: Budget) -> tuple[Budget | None, Budget]:
        """Split `budget` into the compressor's and the generation's.

        A budget that counts prompt tokens is the compressor's, one that counts visual tokens the
        pruner's (see `pruner`); generation is then unlimited by it. Any other budget is the
        generation's, and the compressor's part is its stage "prompt".

        Raises:
            BudgetError: if the stack compresses and the budget does not say to what size, or if a
                budget of visual tokens meets a stack without a vision method.
        """
        if budget.counts == "vision":
            if self.vision is None:
                raise BudgetError(
                    f"{self.label()} has no vision method, and a budget of {budget.label()} needs "
                    "one; add one, or use counts='generated'"
                )
            return None, Budget()
        if budget.counts == "prompt":
            return (budget if self.prompt is not None else None), Budget()
        if self.prompt is None:
            return None, budget
        share = (budget.stages or {}).get("prompt")
        if not share:
            raise BudgetError(
                f"{registry.label(self.prompt)} needs to know the prompt's size, and the budget "
                f"of {budget.label()} does not say it; use counts='prompt', or give "
                "stages={'prompt': ...}"
            )
        return Budget(tokens=share, counts="prompt"), budget
