"""Real text that every machine has: the documentation and the source of Python and its packages.

For distilling drafts, fitting predictors of caches, training routers and measuring perplexity.
A document belongs to the held-out tenth by a hash of its name. Kinds: "english" is the language
reference that comes with Python and the docstrings of modules, "code" is source files as they are.

Shapes: N rows, T tokens.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from outlay.errors import InputError
from outlay.evals.sources import read_tree, stdlib_path

TextKind = Literal["english", "code"]
TextSplit = Literal["train", "heldout"]
HELD_OUT = 10  # one document in ten is never trained on
_MOST, _LARGEST = 20_000, 1_000_000  # files of a package, bytes of a file
_SHORT = 200  # characters; a docstring below says little
_WINDOW = 200_000  # characters of one document that are tokenised together


@dataclass(frozen=True)
class Document:
    """One text and the name that decides its split."""

    name: str
    kind: TextKind
    text: str

    @property
    def split(self) -> TextSplit:
        """The split that the document belongs to."""
        return "heldout" if zlib.crc32(self.name.encode()) % HELD_OUT == 0 else "train"


@cache
def documents(packages: tuple[str, ...] = ()) -> tuple[Document, ...]:
    """The standard library's documents, then those of installed packages, in a fixed order.

    Args:
        packages: names of importable packages beside the standard library; the text then depends
            on their versions.

    Raises:
        InputError: for a package that is not installed.
    """
    from pydoc_data.topics import topics

    found = [Document(f"topic/{name}", "english", topics[name]) for name in sorted(topics)]
    roots = [("stdlib", stdlib_path())]
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(f"package {package!r} is not installed; install it or leave it out")
        roots.append((package, Path(spec.origin).parent))
    for name, root in roots:
        for file in read_tree(
            root, languages=("python",), max_files=_MOST, max_file_bytes=_LARGEST
        ).files:
            found.append(Document(f"{name}/{file.path}", "code", file.text))
            if prose := _docstrings(file.text):
                found.append(Document(f"{name}/{file.path}#doc", "english", prose))
    return tuple(found)


def _docstrings(source: str) -> str:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    wanted = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, wanted))
    return "\n\n".join(inspect.cleandoc(text) for text in texts if text and len(text) >= _SHORT)


def rows(
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    seed: int = 0,
    split: TextSplit = "train",
    kinds: Sequence[TextKind] = ("english", "code"),
    packages: tuple[str, ...] = (),
) -> Iterator[torch.Tensor]:
    """Endless rows of `length` tokens, ids_T, from documents in random order; kinds take turns.

    A row never joins two documents, and every pass over the documents cuts them elsewhere.

    Raises:
        InputError: for a length below 1 or more tokens than any document has.
    """
    if length < 1:
        raise InputError(f"length={length}; must be at least 1")
    chosen = {
        kind: [d for d in documents(packages) if d.kind == kind and d.split == split]
        for kind in dict.fromkeys(kinds)
    }
    streams = [
        _kind_rows(tokenizer, found, length, f"{seed}:{split}:{kind}")
        for kind, found in chosen.items()
    ]
    while True:
        for stream in streams:
            yield next(stream)


def _kind_rows(
    tokenizer: PreTrainedTokenizerBase, found: Sequence[Document], length: int, seed: str
) -> Iterator[torch.Tensor]:
    rng = random.Random(seed)
    while True:
        order = list(found)
        rng.shuffle(order)
        any_row = False
        for document in order:
            start = rng.randrange(max(1, len(document.text) - _WINDOW + 1))
            piece = document.text[start : start + _WINDOW]
            ids = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
            first = rng.randrange(max(1, min(length, len(ids) - length + 1)))
            for at in range(first, len(ids) - length + 1, length):
                any_row = True
                yield torch.tensor(ids[at : at + length], dtype=torch.long)
        if not any_row:
            raise InputError(f"length={length}: no document has so many tokens; lower it")


def batch(
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    *,
    length: int,
    seed: int = 0,
    split: TextSplit = "heldout",
    kinds: Sequence[TextKind] = ("english", "code"),
    packages: tuple[str, ...] = (),
) -> torch.Tensor:
    """The first `n` of `rows`, as ids_NT; held-out text by default."""
    stream = rows(tokenizer, length=length, seed=seed, split=split, kinds=kinds, packages=packages)
    return torch.stack([next(stream) for _ in range(n)])
