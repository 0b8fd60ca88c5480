"""Hidden reasoning to audit, made from real text: worked solutions and documentation pages.

Two sources. "solutions": worked solutions of one template of reasoning-gym's gsm_symbolic with
changing numbers, with the first question and the last lines as the visible answer. "pages":
documentation that comes with Python and its packages, the body as the hidden part and the lead
paragraphs as the answer: a proxy for long traces. A template or a page belongs to one split, by a
hash of its name.

Lengths are spread evenly on a log scale, so that an inflated trace can be as long as an honest one:
a verifier must not learn that long is false. Tokens are those of SmolLM2's tokenizer. Text is
reduced to ASCII, so that every token has a text.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from outlay.errors import InputError

Source = Literal["solutions", "pages"]
Split = Literal["train", "calibrate", "test"]
SOURCES: tuple[Source, ...] = get_args(Source)
LEAD = 300  # characters of a page's lead, at least
BLOCKS = 20, 80  # of a trace, least and most, in blocks of 32 tokens
LONG = 2560, 6144  # tokens of a trace for larger blocks
_DRAW = "coin-2"  # of the splits; another name is another draw
PACKAGES = ("numpy", "scipy", "sklearn")
_ASCII = {0xD7: "x", 0x2022: "-", 0xF7: "/", 0x2212: "-", 0x2013: "-", 0x2019: "'"}


@dataclass(frozen=True)
class Trace:
    """One hidden reasoning.

    Args:
        name: what it was made from.
        source: which kind of text.
        tokens: their texts, in order.
        answer: what the user sees.
        prompt: what the user asked.
    """

    name: str
    source: Source
    tokens: tuple[str, ...]
    answer: str
    prompt: str = ""


@cache
def tokenizer() -> Any:
    """SmolLM2's tokenizer."""
    from transformers import AutoTokenizer

    from outlay.models import embedded

    return AutoTokenizer.from_pretrained(embedded.fetch()[0])


@cache
def vocabulary() -> tuple[str, ...]:
    """The texts of all tokens that are whole ASCII text."""
    reader = tokenizer()
    texts = reader.batch_decode([[index] for index in range(len(reader))])
    special = set(reader.all_special_tokens)
    return tuple(text for text in texts if text and text.isascii() and text not in special)


def pieces(text: str) -> tuple[str, ...]:
    """The texts of a text's tokens; joined they are the text in ASCII."""
    plain = text.translate(_ASCII).encode("ascii", "ignore").decode()
    reader = tokenizer()
    ids = reader(plain, add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(reader.batch_decode([[index] for index in ids]))


def split_of(name: str) -> Split:
    """Four tenths of the names train, three calibrate, three test."""
    tenth = zlib.crc32(f"{_DRAW}/{name}".encode()) % 10
    return "train" if tenth < 4 else "calibrate" if tenth < 7 else "test"


def lengths(block: int) -> tuple[int, int]:
    """Fewest and most tokens of a trace that is cut into blocks of this size."""
    return (32 * BLOCKS[0], 32 * BLOCKS[1]) if block <= 64 else LONG


def traces(source: Source, split: Split, n: int, seed: int = 0, block: int = 32) -> list[Trace]:
    """The first `n` traces of a source and split, of the lengths that suit a block size.

    Raises:
        InputError: if there are not so many.
    """
    if n < 1:
        raise InputError(f"n={n}; at least one trace")
    if source not in SOURCES:
        raise InputError(f"source={source!r}; choose {', '.join(SOURCES)}")
    make = _solutions if source == "solutions" else _pages
    found = make(split, n, seed, lengths(block))
    if len(found) < n:
        raise InputError(f"{n} traces of {source}/{split}; there are only {len(found)}")
    return found


def _solutions(split: Split, n: int, seed: int, span: tuple[int, int]) -> list[Trace]:
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import (
        GSMSymbolicDataset,
        GSMSymbolicDatasetConfig,
        tasks_ok,
    )

    world = GSMSymbolicDataset(GSMSymbolicDatasetConfig(size=1, seed=seed))
    templates = [i for i in sorted(tasks_ok) if split_of(f"template/{i}") == split]
    rng = random.Random(f"{seed}:{split}")
    found: list[Trace] = []
    while len(found) < n:
        template = templates[len(found) % len(templates)]
        length = _length(rng, span)
        solved: list[tuple[str, str]] = []
        tokens: tuple[str, ...] = ()
        while len(tokens) < length:
            for _ in range(1 + (length - len(tokens)) // 160):
                made = world.generators[template](random.Random(rng.random()), 1.0)
                solved.append((made["question"], made["metadata"]["answer_cot"]))
            tokens = pieces("\n\n".join(solution for _, solution in solved))
        prompt = solved[0][0]
        last = "\n".join(solution.strip().splitlines()[-1] for _, solution in solved)
        name = f"solutions/{split}/{len(found)}"
        found.append(Trace(name, "solutions", tokens[:length], f"{prompt}\n{last}", prompt))
    return found


def _pages(split: Split, n: int, seed: int, span: tuple[int, int]) -> list[Trace]:
    from outlay.testbeds.text import documents

    pages = [d for d in documents(PACKAGES) if d.kind == "english" and split_of(d.name) == split]
    rng = random.Random(f"{seed}:{split}:pages")
    rng.shuffle(pages)
    found: list[Trace] = []
    for page in pages:
        if len(found) == n:
            break
        lead, _, body = page.text.strip().partition("\n\n")
        while len(lead) < LEAD and body:  # a title: what follows belongs to the lead
            more, _, body = body.partition("\n\n")
            lead = f"{lead}\n{more}"
        if len(body) < 2 * span[0]:
            continue
        tokens = pieces(body[: 8 * span[1]])[: _length(rng, span)]
        if len(tokens) >= span[0] and lead.strip():
            found.append(Trace(page.name, "pages", tokens, lead[:1500], page.name))
    return found


def _length(rng: random.Random, span: tuple[int, int]) -> int:
    return round(math.exp(rng.uniform(math.log(span[0]), math.log(span[1]))))
