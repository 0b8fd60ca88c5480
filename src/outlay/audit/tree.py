"""Hash trees over leaves: root, proofs of inclusion, and their verification.

Two forms of the CoIn sheet (arXiv 2505.13778):

- "bound" (ours, the default): the tree of RFC 6962, section 2.1. Leaves and nodes are hashed in
  domains of their own, and a list of n leaves is split at the largest power of two below n, so
  that nothing is padded and every size has its own shape.
- "paper": leaves without a domain, padded to a power of two by repeating the last one. It does not
  bind the number of leaves: five leaves have the same root as the same five and the last one
  repeated.

A proof is the list of sibling hashes from the leaf up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from outlay.errors import InputError

Form = Literal["bound", "paper"]
HashName = Literal["sha256", "sha384", "sha512", "sha3_256", "blake2b"]
_EMPTY = b"coin-empty"
_MOST = 2**32  # leaves


def hasher(name: str) -> Callable[[bytes], bytes]:
    """A hash function by name.

    Raises:
        InputError: for one that is not known, or not safe against collisions.
    """
    if name not in get_args(HashName):
        raise InputError(f"hash {name!r}; choose {', '.join(get_args(HashName))}")
    function = getattr(hashlib, name)

    def digest(data: bytes) -> bytes:
        result: bytes = function(data).digest()
        return result

    return digest


@dataclass(frozen=True)
class Tree:
    """A hash tree over payloads.

    Args:
        payloads: of the leaves, in order.
        form: see the module.
        hash: name of the hash.

    Raises:
        InputError: for an unknown form or hash, or without payloads in the bound form.
    """

    payloads: Sequence[bytes] = field(repr=False)
    form: Form = "bound"
    hash: str = "sha256"

    def __post_init__(self) -> None:
        check_form(self.form)
        hasher(self.hash)
        if self.form == "bound" and not self.payloads:
            raise InputError("no leaves: a bound tree needs at least one hidden token")
        if len(self.payloads) > _MOST:
            raise InputError(f"{len(self.payloads)} leaves; at most {_MOST}")

    @cached_property
    def levels(self) -> list[list[bytes]]:
        """Hashes of every level, leaves first; a node without a sibling moves up as it is."""
        new = getattr(hashlib, self.hash)  # called in place: a wrapper costs more than a node
        if self.form == "bound":
            level = [new(b"\x00" + payload).digest() for payload in self.payloads]
            mark = b"\x01"
        else:
            level = [new(payload).digest() for payload in self.payloads or [_EMPTY]]
            level += [level[-1]] * (_power(len(level)) - len(level))
            mark = b""
        levels = [level]
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=False)
            above = [new(mark + left + right).digest() for left, right in pairs]
            if len(level) % 2:
                above.append(level[-1])
            levels.append(above)
            level = above
        return levels

    @property
    def root(self) -> bytes:
        """The root's hash."""
        return self.levels[-1][0]

    def prove(self, index: int) -> tuple[bytes, ...]:
        """Sibling hashes of leaf `index`, from below.

        Raises:
            InputError: for an index that has no leaf.
        """
        if not 0 <= index < len(self.levels[0]):
            raise InputError(f"index {index}; leaves are numbered 0 to {len(self.levels[0]) - 1}")
        path = []
        for level in self.levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                path.append(level[sibling])
            index //= 2
        return tuple(path)


def check_form(form: str) -> None:
    """Raise `InputError` for an unknown form."""
    if form not in get_args(Form):
        raise InputError(f"tree={form!r}; choose {', '.join(get_args(Form))}")


def _power(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << max(0, size - 1).bit_length()


def verify(
    payload: bytes,
    index: int,
    size: int,
    path: Sequence[bytes],
    root: bytes,
    *,
    form: Form = "bound",
    hash: str = "sha256",
) -> bool:
    """True if `payload` is leaf `index` of the tree of `size` leaves with this root.

    Never raises for a proof that is wrong: a path of another length, an index out of range and
    hashes of another width are all False.
    """
    hasher(hash)
    new = getattr(hashlib, hash)
    width = new().digest_size
    if not 0 <= index < size <= _MOST or any(len(each) != width for each in path):
        return False
    if form == "paper":
        size = _power(size)
        node, mark = new(payload).digest(), b""
    else:
        node, mark = new(b"\x00" + payload).digest(), b"\x01"
    at = 0
    last = size - 1
    while last:
        if index % 2 or index < last:
            if at == len(path):
                return False
            sibling = path[at]
            at += 1
            pair = sibling + node if index % 2 else node + sibling
            node = new(mark + pair).digest()
        index //= 2
        last //= 2
    return at == len(path) and node == root
