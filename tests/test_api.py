"""`outlay.ask` and `outlay.compress` on a small real model."""

import pytest

import outlay
from outlay.budget import Budget
from outlay.errors import BudgetError, InputError
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def reasoner():
    return outlay.load_model("reasoner")


def test_a_shortened_context_does_not_eat_the_answers_budget(reasoner) -> None:
    answer = outlay.ask(
        "3+4=?",
        context="1+1=2;" * 60,
        model=reasoner,
        stack="head",
        context_budget=50,
        budget=Budget(tokens=8),
        raw=True,
    )
    total = answer.ledger.totals(role="target")
    assert total.generated <= 8
    assert total.prompt_new <= 50 + reasoner.count("\n\n3+4=?") + 2


def test_a_compressing_stack_needs_the_contexts_size(reasoner) -> None:
    with pytest.raises(BudgetError, match="stages="):
        outlay.ask("3+4=?", context="1+1=2;" * 9, model=reasoner, stack="head", raw=True)


def test_several_files_are_joined_under_their_names(reasoner, tmp_path) -> None:
    paths = []
    for name in ("a.py", "b.py"):
        paths.append(tmp_path / name)
        paths[-1].write_text("x = 1\n" * 5)
    result = outlay.compress(paths, budget=10_000, method="head", model=reasoner)
    assert "a.py" in result.text
    assert "b.py" in result.text
    with pytest.raises(InputError, match="nothing to compress"):
        outlay.compress([], budget=10, model=reasoner, method="head")


def test_ask_votes_within_its_budget() -> None:
    model = tiny_model()
    for spec in ("self-consistency:n=4", "best-of-n:n=3", "beam:n=4,m=2,step_tokens=6"):
        answer = outlay.ask("Why?", model=model, stack=spec, budget=Budget(tokens=30))
        assert answer.ledger.totals(role="target").generated <= 30
        assert model.decode(answer.token_ids).startswith(answer.text)
