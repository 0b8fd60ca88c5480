"""Fingerprints of hidden tokens: what is committed to, and what an opening shows.

A reasoning of m tokens is cut into blocks of `block` tokens. The fingerprint of token i is the
embedding of its block's text beside the embedding of its own text (CoIn, arXiv 2505.13778, section
on fingerprints, as the sheet restates it). Vectors are rounded to the float16 grid, and -0.0 to
0.0, so that machines that differ in the last bits agree on nearly all bytes. Nearly: a value that
lies at the middle between two steps may still fall either way, so what is compared is only ever
what the provider itself opened, never a fingerprint made again from text.

An opened token embedding reveals its token: the vocabulary is finite. Exposure is disclosure.

Shapes: M tokens, A blocks, D embedding size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, overload

import numpy as np
import numpy.typing as npt

from outlay.audit.tree import Form, check_form
from outlay.errors import InputError

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
"""Texts to unit vectors, (N, D)."""
Quant = Literal["f16", "f32"]
NORM = 0.01  # how far a vector's length may be from 1
_MOST_TOKENS = 10_000_000


@dataclass(frozen=True)
class Partition:
    """How m tokens are cut into blocks of `block`; the last block may be shorter.

    Raises:
        InputError: without tokens, or with a block below 1.
    """

    tokens: int
    block: int

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= _MOST_TOKENS:
            raise InputError(f"{self.tokens} hidden tokens; an audit needs 1 to {_MOST_TOKENS}")
        if self.block < 1:
            raise InputError(f"block={self.block}; must be at least 1 token")

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.tokens // self.block)

    def of(self, index: int) -> int:
        """The block of token `index`."""
        return index // self.block

    def span(self, block: int) -> range:
        """The tokens of a block."""
        return range(block * self.block, min(self.tokens, (block + 1) * self.block))


def quantise(vectors: npt.ArrayLike, quant: Quant = "f16") -> Vectors:
    """Round to the float16 grid ("f32": keep), with one zero.

    Raises:
        InputError: for another grid.
    """
    if quant not in get_args(Quant):
        raise InputError(f"quant={quant!r}; choose {', '.join(get_args(Quant))}")
    kept = np.asarray(vectors, dtype=np.float32)
    if quant == "f16":
        kept = kept.astype(np.float16).astype(np.float32)
    return kept + np.float32(0.0)  # -0.0 + 0.0 is 0.0


def check_vectors(vectors: Vectors, what: str) -> Vectors:
    """Vectors as an audit can use them.

    Raises:
        InputError: for NaN, another rank, or a length that is not 1; it names the index.
    """
    if vectors.ndim != 2:
        raise InputError(f"{what} have the shape {vectors.shape}; one row a text is needed")
    with np.errstate(over="ignore", invalid="ignore"):
        bad = ~(np.abs(np.linalg.norm(vectors, axis=1) - 1) <= NORM)  # NaN is bad, too
    if bad.any():
        index = int(bad.argmax())
        finite = np.isfinite(vectors[index]).all()
        reason = "has not the length 1" if finite else "is not finite"
        raise InputError(f"{what}: vector {index} {reason}")
    return vectors


def payload(form: Form, index: int, block: int, block_D: Vectors, token_D: Vectors) -> bytes:
    """The bytes of a leaf."""
    head = struct.pack(">QQ", index, block) if form == "bound" else b""
    return head + block_D.astype("<f4").tobytes() + token_D.astype("<f4").tobytes()


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of one reasoning.

    Args:
        partition: tokens and blocks.
        blocks_AD: embeddings of the blocks' texts, quantised.
        tokens_MD: embeddings of the tokens' texts, quantised.
        form: of the tree that they are for.

    Raises:
        InputError: for numbers or sizes of vectors that do not fit, or vectors that cannot be.
    """

    partition: Partition
    blocks_AD: Vectors
    tokens_MD: Vectors
    form: Form = "bound"

    def __post_init__(self) -> None:
        check_form(self.form)
        check_vectors(self.blocks_AD, "block embeddings")
        check_vectors(self.tokens_MD, "token embeddings")
        wanted = (self.partition.blocks, self.partition.tokens)
        found = (len(self.blocks_AD), len(self.tokens_MD))
        if wanted != found:
            raise InputError(
                f"{found[0]} block and {found[1]} token embeddings for {wanted[0]} blocks of "
                f"{wanted[1]} tokens"
            )
        if self.blocks_AD.shape[1] != self.tokens_MD.shape[1]:
            raise InputError("block and token embeddings differ in size; use one embedder")

    def leaf(self, index: int) -> bytes:
        """The payload of a token's leaf."""
        block = self.partition.of(index)
        return payload(self.form, index, block, self.blocks_AD[block], self.tokens_MD[index])

    def leaves(self) -> Sequence[bytes]:
        """All payloads, each made when it is read: together they would be larger than all else."""
        return _Leaves(self)


class _Leaves(Sequence[bytes]):
    """Payloads that are made when they are read."""

    def __init__(self, prints: Fingerprints) -> None:
        self._prints = prints

    def __len__(self) -> int:
        return self._prints.partition.tokens

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        found = range(len(self))[index]
        if isinstance(found, range):
            return [self._prints.leaf(each) for each in found]
        return self._prints.leaf(found)


def block_texts(texts: Sequence[str], block: int) -> list[str]:
    """The texts of the blocks of tokens with these texts."""
    return ["".join(texts[at : at + block]) for at in range(0, len(texts), block)]


def fingerprint(
    texts: Sequence[str],
    embed: Embed,
    *,
    block: int = 256,
    form: Form = "bound",
    quant: Quant = "f16",
) -> Fingerprints:
    """Fingerprints of the tokens with these texts, in order.

    Args:
        texts: of the hidden tokens.
        embed: the embedder that provider and auditor agreed on.
        block: tokens per block.
        form: of the tree.
        quant: grid of the vectors.

    Raises:
        InputError: as `Partition` and `Fingerprints`.
    """
    partition = Partition(len(texts), block)
    joined = block_texts(texts, block)
    distinct = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(distinct)}
    table_VD = quantise(embed(distinct), quant)
    return Fingerprints(
        partition,
        quantise(embed(joined), quant),
        table_VD[[place[text] for text in texts]],
        form,
    )
