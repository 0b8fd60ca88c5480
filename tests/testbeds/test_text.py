"""Real text: reproducible rows, a split by name, errors that say what to do."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from outlay.errors import InputError
from outlay.testbeds.text import batch, documents, rows
from tiny_models import tiny_tokenizer


def test_a_document_is_in_one_split_and_both_splits_have_both_kinds() -> None:
    found = documents()
    assert len({(d.name, d.kind) for d in found}) == len(found)
    for kind in ("english", "code"):
        splits = [d.split for d in found if d.kind == kind]
        assert 0.05 < splits.count("heldout") / len(splits) < 0.2


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    tokenizer = tiny_tokenizer()
    one, two, other = (batch(tokenizer, 4, length=64, seed=seed) for seed in (0, 0, 1))
    assert one.shape == (4, 64)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_kinds_take_turns() -> None:
    tokenizer = tiny_tokenizer()
    mixed = list(islice(rows(tokenizer, length=64), 4))
    english = list(islice(rows(tokenizer, length=64, kinds=["english"]), 2))
    code = list(islice(rows(tokenizer, length=64, kinds=["code"]), 2))
    for row, expected in zip(mixed, (english[0], code[0], english[1], code[1]), strict=True):
        assert torch.equal(row, expected)


def test_a_row_is_a_piece_of_one_document() -> None:
    tokenizer = tiny_tokenizer()
    texts = [d.text for d in documents() if d.split == "heldout"]
    for row in batch(tokenizer, 4, length=48, seed=2):
        piece = tokenizer.decode(row.tolist(), skip_special_tokens=False)
        assert any(piece.strip("\ufffd") in text for text in texts)


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(InputError, match="length=0"):
        next(rows(tiny_tokenizer(), length=0))
    with pytest.raises(InputError, match="'no_such_package' is not installed"):
        documents(("no_such_package",))
    with pytest.raises(InputError, match="no document has so many tokens"):
        next(rows(tiny_tokenizer(), length=10_000_000, kinds=["english"]))
