"""The loop over a cache method: the model's own tokens, its budgets, gauges and books."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from outlay.budget import Budget
from outlay.cache.base import CacheMethod, Prefilled
from outlay.cache.loop import CachedDecoder, FullCache, forward, kv_bytes
from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.models.base import Account, Generation, SamplingParams
from outlay.models.endpoint import EndpointModel
from tiny_models import tiny_model

PROMPT = "the cat in the hat"
FULL = CachedDecoder(FullCache())


@pytest.mark.parametrize("kind", ["Llama", "Mixtral", "Qwen2", "Gemma2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_over_a_full_cache_the_loop_writes_what_the_model_writes(
    kind: str, temperature: float
) -> None:
    model = tiny_model(kind)
    sampling = SamplingParams(max_tokens=24, temperature=temperature, seed=3)
    own = model.generate(PROMPT, None, sampling)
    found = FULL.generate(model, PROMPT, None, sampling)
    assert (found.token_ids, found.text, found.finish_reason) == (
        own.token_ids,
        own.text,
        own.finish_reason,
    )


def test_pieces_of_a_stream_join_to_the_text() -> None:
    model = tiny_model()
    sampling = SamplingParams(max_tokens=30, temperature=1.0, seed=5, ignore_eos=True)
    chunks = list(FULL.stream(model, PROMPT, None, sampling))
    last = chunks[-1].generation
    assert isinstance(last, Generation)
    shown = "".join(chunk.text for chunk in chunks)
    assert last.text.startswith(shown)
    assert len(last.text) - len(shown) <= 4  # an unfinished character is held back


def test_a_budget_cuts_and_is_named_as_the_reason() -> None:
    found = FULL.generate(tiny_model(), PROMPT, Budget(tokens=3), SamplingParams(max_tokens=9))
    assert len(found.token_ids) <= 3
    assert found.finish_reason == "budget"
    with pytest.raises(BudgetError):
        FULL.generate(tiny_model(), PROMPT, Budget(tokens=0), SamplingParams(max_tokens=9))


def test_the_books_hold_prompt_answer_and_flops() -> None:
    model = tiny_model()
    account = Account.open(Budget(tokens=8))
    found = FULL.generate(
        model, PROMPT, None, SamplingParams(max_tokens=8, ignore_eos=True), account=account
    )
    total = account.ledger.totals()
    assert (total.prompt_new, total.generated) == (len(model.prompt_ids(PROMPT)), 8)
    assert total.flops > 0
    assert total.discarded == 0
    assert found.gauges.ttft is not None
    assert found.gauges.tbt is not None


def test_peak_bytes_are_those_of_all_rows_but_the_last_token() -> None:
    model = tiny_model()
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    rows = len(model.prompt_ids(PROMPT)) + 7
    own = model.generate(PROMPT, None, sampling).gauges.kv_bytes
    config = model.model.config
    a_row = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert FULL.generate(model, PROMPT, None, sampling).gauges.kv_bytes == own == rows * a_row


def test_a_cache_that_compacts_is_compacted_after_every_pass() -> None:
    from transformers.cache_utils import DynamicCache

    class Counting(DynamicCache):
        calls = 0

        def compact(self) -> None:
            self.calls += 1

    class Method:
        def prefill(
            self, model: Any, ids_BT: torch.Tensor, *, account: Account | None = None
        ) -> Prefilled:
            self.cache = Counting(config=model.model.config)
            return Prefilled(self.cache, forward(model, ids_BT, self.cache))

    method = Method()
    assert isinstance(method, CacheMethod)
    CachedDecoder(method).generate(
        tiny_model(), PROMPT, None, SamplingParams(max_tokens=5, ignore_eos=True)
    )
    assert method.cache.calls == 5  # the prompt and four of five tokens
    assert kv_bytes(method.cache) > 0


def test_an_endpoint_has_no_cache_to_hand() -> None:
    model = EndpointModel("http://127.0.0.1:9/v1", model="m")
    with pytest.raises(CapabilityError, match="FullCache needs a model's network"):
        FULL.generate(model, PROMPT)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        FULL.generate(tiny_model(), "")
