"""Stacks: one method a slot, specs and labels, and whose budget is whose."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.cache.loop import CachedDecoder, FullCache
from outlay.decode.plain import PlainDecoder
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.prompt.truncation import HeadTruncation, TailTruncation
from outlay.stack import NOTHING, Stack


@dataclass(frozen=True)
class Solver:
    tries: int = 3


def test_specs_fill_slots() -> None:
    stack = Stack.parse("head+m1:max_think=2,wait=a")
    assert isinstance(stack.prompt, HeadTruncation)
    assert stack.decode == ThinkingBudget(max_think=2, wait="a")
    assert (stack.vision, stack.cache, stack.reason) == (None, None, None)
    assert Stack.parse("m1+head").label() == "head+m1"  # slots have one order
    assert Stack.parse(" full ") == Stack()
    assert Stack().label() == NOTHING


@given(
    st.sampled_from([None, HeadTruncation(), TailTruncation()]),
    st.one_of(
        st.none(),
        st.builds(PlainDecoder, max_tokens=st.one_of(st.none(), st.integers(1, 9))),
        st.builds(ThinkingBudget, overthink_prefix=st.text(min_size=1, max_size=6)),
        st.builds(ThinkingBudget, wait=st.sampled_from(["a+b", "1e+5", '"', "x,y", "[", "("])),
    ),
)
def test_a_label_parses_to_the_same_stack(prompt: object, decode: object) -> None:
    stack = Stack(prompt=prompt, decode=decode)
    assert Stack.parse(stack.label()) == stack


def test_impossible_stacks_are_refused() -> None:
    with pytest.raises(InputError, match="two methods for the slot 'prompt'"):
        Stack.parse("head+tail")
    with pytest.raises(InputError, match="unknown method 'haed'; did you mean head"):
        Stack.parse("haed+m1")
    with pytest.raises(InputError, match="unknown method ''"):
        Stack.parse("head+")
    with pytest.raises(InputError, match="Solver decodes by itself; drop plain"):
        Stack(decode=PlainDecoder(), reason=Solver())
    with pytest.raises(InputError, match="Solver decodes by itself; drop full-cache"):
        Stack(cache=FullCache(), reason=Solver())
    assert Stack(reason=Solver()).label() == "Solver:tries" or Stack(reason=Solver()).label()


def test_a_prompt_budget_is_the_compressors() -> None:
    budget = Budget(tokens=100, counts="prompt")
    assert Stack(prompt=HeadTruncation()).budgets(budget) == (budget, Budget())
    assert Stack().budgets(budget) == (None, Budget())


def test_any_other_budget_is_the_generations() -> None:
    budget = Budget(tokens=100)
    assert Stack(decode=PlainDecoder()).budgets(budget) == (None, budget)
    with pytest.raises(BudgetError, match="head needs to know the prompt's size"):
        Stack(prompt=HeadTruncation()).budgets(budget)
    split = Budget(tokens=100, counts="all", stages={"prompt": 60})
    assert Stack(prompt=HeadTruncation()).budgets(split) == (
        Budget(tokens=60, counts="prompt"),
        split,
    )


def test_stacks_travel_between_processes() -> None:
    stack = Stack.parse("head+m1:max_think=2")
    assert pickle.loads(pickle.dumps(stack)) == stack  # noqa: S301 - our own bytes


def test_a_decoder_runs_over_the_cache_method_where_it_can() -> None:
    assert Stack().decoder() is None
    assert Stack(decode=PlainDecoder()).decoder() == PlainDecoder()
    assert Stack(cache=FullCache()).decoder() == CachedDecoder(FullCache())
    with pytest.raises(CapabilityError, match="m1 keeps its own cache; drop full-cache"):
        Stack(decode=ThinkingBudget(), cache=FullCache()).decoder()

    @dataclass(frozen=True)
    class Rider:
        under: object = None

        def generate(self, *args: object, **kwargs: object) -> None:
            """Nothing."""

        def over(self, cache: object) -> Rider:
            return Rider(cache)

    assert Stack(decode=Rider(), cache=FullCache()).decoder() == Rider(FullCache())
