"""Packing: batches of about so many tokens that lose no example."""

import random
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.testbeds.packing import IGNORED, check_batch_tokens, packed, padded

PAD, ROOM, LONGEST = 0, 60, 20


def parts(rng):
    """Endless examples, five at a time: (id, id, ...), none of them padding."""
    for _ in count():
        sizes = [rng.randint(1, LONGEST) for _ in range(5)]
        ids = [[rng.randint(1, 99) for _ in range(size)] for size in sizes]
        yield [(row, [IGNORED] * (len(row) - 1) + row[-1:]) for row in ids]


def rows(batch):
    return [tuple(i for i in row if i != PAD) for row in batch[0].tolist()]


def test_rows_are_padded_on_the_right_and_padding_is_not_learnt():
    ids_BT, labels_BT = padded([([5, 6, 7], [IGNORED, 6, 7]), ([8], [8])], PAD)
    assert ids_BT.tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert labels_BT.tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]


@given(st.integers(0, 10**6), st.booleans())
def test_no_batch_is_too_large_and_a_pool_holds_every_example_once(seed, sort):
    drawn = []

    def recorded():
        for part in parts(random.Random(seed)):
            drawn.extend(tuple(ids) for ids, _ in part)
            yield part

    made = packed(
        recorded(), pad=PAD, batch_tokens=ROOM, pool=4, rng=random.Random(seed), sort=sort
    )
    seen = rows(next(made))
    pool = list(drawn)
    while len(seen) < len(pool):
        batch = next(made)
        assert batch[0].numel() <= ROOM
        assert batch[0].shape == batch[1].shape
        seen += rows(batch)
    assert sorted(seen) == sorted(pool)
    assert drawn == pool  # no more is drawn than is needed
    assert 4 * ROOM <= sum(map(len, pool)) < 4 * ROOM + 5 * LONGEST


def test_sorting_saves_padding():
    def padding(sort):
        made = packed(
            parts(random.Random(0)),
            pad=PAD,
            batch_tokens=ROOM,
            pool=8,
            rng=random.Random(0),
            sort=sort,
        )
        return sum(int((ids_BT == PAD).sum()) for ids_BT, _ in islice(made, 40))

    assert padding(sort=True) < 0.5 * padding(sort=False)


def test_a_batch_must_have_room_for_the_longest_example():
    check_batch_tokens(8, 8)
    with pytest.raises(InputError, match="batch_tokens=7; must be at least 8"):
        check_batch_tokens(7, 8)
