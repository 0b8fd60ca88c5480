"""Hash trees against an independent recursive implementation, and proofs that must not pass."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.audit.tree import Tree, verify
from outlay.errors import InputError


def sha(data):
    return hashlib.sha256(data).digest()


def root_rfc6962(leaves):
    """Section 2.1 of RFC 6962, word for word."""
    if len(leaves) == 1:
        return sha(b"\x00" + leaves[0])
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha(b"\x01" + root_rfc6962(leaves[:k]) + root_rfc6962(leaves[k:]))


def path_rfc6962(m, leaves):
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*path_rfc6962(m, leaves[:k]), root_rfc6962(leaves[k:])]
    return [*path_rfc6962(m - k, leaves[k:]), root_rfc6962(leaves[:k])]


def root_padded(leaves):
    hashes = [sha(leaf) for leaf in leaves] or [sha(b"coin-empty")]
    while len(hashes) & (len(hashes) - 1):
        hashes.append(hashes[-1])

    def up(part):
        half = len(part) // 2
        return part[0] if not half else sha(up(part[:half]) + up(part[half:]))

    return up(hashes)


def leaves(n):
    return [f"leaf {i}".encode() for i in range(n)]


def test_bound_trees_are_those_of_rfc_6962_for_sizes_to_130():
    for size in range(1, 131):
        held = leaves(size)
        tree = Tree(held)
        assert tree.root == root_rfc6962(held)
        for index in {0, size // 2, size - 1, size // 3}:
            assert list(tree.prove(index)) == path_rfc6962(index, held)


def test_padded_trees_are_the_papers_for_sizes_to_130():
    for size in range(131):
        assert Tree(leaves(size), "paper").root == root_padded(leaves(size))


@pytest.mark.parametrize("form", ["bound", "paper"])
def test_every_proof_verifies_and_none_for_another_index_or_payload(form):
    for size in (1, 2, 3, 5, 8, 13, 64, 65, 130):
        held = leaves(size)
        tree = Tree(held, form)
        for index in range(size):
            path = tree.prove(index)
            assert verify(held[index], index, size, path, tree.root, form=form)
            for other in {0, size - 1, index ^ 1, (index + size // 2) % size} - {index}:
                if other < size:
                    assert not verify(held[index], other, size, path, tree.root, form=form)
            assert not verify(b"another", index, size, path, tree.root, form=form)


@given(st.integers(2, 130), st.data())
def test_no_flipped_bit_verifies(size, data):
    held = leaves(size)
    tree = Tree(held)
    index = data.draw(st.integers(0, size - 1))
    path = list(tree.prove(index))
    place = data.draw(st.integers(0, len(path) + 1))
    parts = [held[index], tree.root, *path]
    changed = bytearray(parts[place])
    bit = data.draw(st.integers(0, 8 * len(changed) - 1))
    changed[bit // 8] ^= 1 << bit % 8
    parts[place] = bytes(changed)
    assert not verify(parts[0], index, size, parts[2:], parts[1])


@given(st.integers(1, 130), st.integers(1, 130))
def test_a_bound_path_has_one_length_per_place_and_size(size, other):
    tree = Tree(leaves(size))
    path = tree.prove(0)
    assert not verify(b"leaf 0", 0, size, (*path, bytes(32)), tree.root)
    assert not path or not verify(b"leaf 0", 0, size, path[:-1], tree.root)
    assert not path or not verify(b"leaf 0", 0, size, [path[0][:-1], *path[1:]], tree.root)
    longest = max(size, other)
    if size != other and (size - 1).bit_length() != (other - 1).bit_length():
        assert not verify(b"leaf 0", 0, other, path, tree.root), longest


def test_repeated_leaves_collide_in_the_papers_form_and_not_in_the_bound_one():
    held = leaves(5)
    grown = [[*held, *[held[-1]] * extra] for extra in range(4)]
    assert len({Tree(each, "paper").root for each in grown}) == 1
    assert len({Tree(each).root for each in grown}) == 4


def test_every_hash_is_that_of_hashlib_and_others_are_refused():
    for name in ("sha256", "sha384", "sha512", "sha3_256", "blake2b"):
        new = getattr(hashlib, name)
        tree = Tree([b"x"], hash=name)
        assert tree.root == new(b"\x00x").digest()
        assert verify(b"x", 0, 1, (), tree.root, hash=name)
    for name in ("md5", "sha1", "new", ""):
        with pytest.raises(InputError, match="choose sha256"):
            Tree([b"x"], hash=name)
    with pytest.raises(InputError, match="choose bound, paper"):
        Tree([b"x"], "merkle")


def test_a_bound_tree_needs_leaves_and_an_index_a_leaf():
    with pytest.raises(InputError, match="at least one hidden token"):
        Tree([])
    for index in (-1, 3):
        with pytest.raises(InputError, match="numbered 0 to 2"):
            Tree(leaves(3)).prove(index)
    assert not verify(b"leaf 0", 3, 3, (), b"")
    assert not verify(b"leaf 0", -1, 3, (), b"")


def test_thousands_of_mutations_of_proofs_and_none_accepted():
    rng = np.random.default_rng(1)
    held = leaves(97)
    tree, wrong = Tree(held), Tree([leaf + b"!" for leaf in held])
    for _ in range(3000):
        index = int(rng.integers(97))
        path, payload, size, root, place = tree.prove(index), held[index], 97, tree.root, index
        kind = int(rng.integers(7))
        if kind == 0:
            payload = bytes(rng.integers(0, 256, len(payload), dtype=np.uint8))
        elif kind == 1:
            path = path[:-1] if rng.random() < 0.5 else (*path, path[-1])
        elif kind == 2:
            path = tuple(reversed(path))
        elif kind == 3:
            path = wrong.prove(index)
        elif kind == 4:
            root = wrong.root
        elif kind == 5:
            place = int((index + rng.integers(1, 97)) % 97)
        else:
            path = (bytes(rng.integers(0, 256, 32, dtype=np.uint8)), *path[1:])
        assert not verify(payload, place, size, path, root)
