"""What a seer can do on held-out scenes, with or without a method that drops visual tokens.

An answer counts if it is exact. Where it is one token, one forward pass with the logits of the last
position decides; otherwise greedy generation does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from outlay.errors import InputError
from outlay.testbeds.fashion import Split
from outlay.testbeds.seer.clips import CLIP_KINDS, Clips, clips, possible_of_clip
from outlay.testbeds.seer.model import Seer, size_of
from outlay.testbeds.seer.questions import (
    ONE_TOKEN,
    TWO_TOKENS,
    VOCABULARY,
    Question,
    one_each,
    possible,
)
from outlay.testbeds.seer.scenes import Scenes, generator, scenes

Method = Callable[[Any], AbstractContextManager[Any]]
"""Takes a model, and keeps fewer of its visual tokens while it is entered."""


@dataclass(frozen=True)
class Examples:
    """Questions of one kind, each about a scene or clip of its own.

    Args:
        kind: of all questions.
        seen: scenes or clips.
        questions: one for each.
    """

    kind: str
    seen: Scenes | Clips
    questions: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: slice) -> Examples:
        """Part of the examples."""
        return Examples(self.kind, self.seen[index], self.questions[index])


def examples(
    seen: Scenes | Clips, kinds: Sequence[str] | None = None, *, seed: int = 0
) -> dict[str, Examples]:
    """For every kind, one question about each scene (or clip) that it can be asked about.

    Args:
        seen: scenes or clips.
        kinds: of questions; None is all with one-token answers.
        seed: of the choice.

    Raises:
        InputError: for an unknown kind.
    """
    default = CLIP_KINDS if isinstance(seen, Clips) else ONE_TOKEN
    made = {}
    for kind in default if kinds is None else kinds:
        rng = generator((seed, 1), "test")

        def ask(scene: int, rng: np.random.Generator, kind: str = kind) -> list[Question]:
            if isinstance(seen, Clips):
                return possible_of_clip(seen, scene, kind, rng)
            return possible(seen, scene, kind, rng)

        index, asked = one_each(len(seen), ask, rng)
        if len(index):
            made[kind] = Examples(kind, seen[index], tuple(asked))
    return made


def held_out(
    size: str,
    n: int = 256,
    kinds: Sequence[str] | None = None,
    *,
    split: Split = "test",
    seed: int = 0,
    **drawing: Any,
) -> dict[str, Examples]:
    """Examples for a size, by kind: `n` scenes (clips for V), and of each kind those it fits.

    Args:
        size: `S`, `M`, `HR` or `V`.
        n: scenes or clips.
        kinds: of questions; None is all with one-token answers.
        split: `test` shows pictures that training did not.
        seed: of the scenes.
        drawing: passed to `scenes` or `clips`, over what the size was trained on.

    Raises:
        InputError: as `scenes` and `clips` do.
    """
    wanted = size_of(size)
    if size == "V":
        return examples(clips(n, split=split, seed=seed, **drawing), kinds, seed=seed)
    known: dict[str, Any] = {"side": wanted.side, "max_objects": wanted.max_objects}
    if wanted.tiled:
        known |= {"side": 2 * wanted.side, "min_objects": 2, "layout": "clustered"}
    return examples(scenes(n, split=split, seed=seed, **{**known, **drawing}), kinds, seed=seed)


def right(
    seer: Seer, asked: Examples, method: Method | None = None, *, batch: int = 64
) -> np.ndarray:
    """(n,) 1 where the answer is exact, else 0: for paired tests between methods.

    Args:
        seer: model and language.
        asked: questions of one kind.
        method: `with method(model): ...` is entered around every batch; None is the full model.
        batch: rows of a forward pass.

    Raises:
        InputError: for batch < 1.
    """
    import torch

    if batch < 1:
        raise InputError(f"batch={batch}; must be at least 1")
    found = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        inputs = seer.inputs(part.seen, part.questions)
        with torch.no_grad(), nullcontext() if method is None else method(seer.model):
            found.append(answered(seer, part, inputs))
    return np.concatenate(found)


def answered(seer: Seer, asked: Examples, inputs: Mapping[str, Any]) -> np.ndarray:
    """(n,) 1 where the model answers exactly, given inputs that a method may have made itself.

    Args:
        seer: model and language.
        asked: the questions in `inputs`.
        inputs: of the model, padded on the left.
    """
    if asked.kind not in TWO_TOKENS:
        logits_BV = seer.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        gold = [VOCABULARY[question.answer[0]] for question in asked.questions]
        return np.asarray((logits_BV.argmax(-1).cpu().numpy() == gold).astype(np.int64))
    written = seer.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    answers = seer.answers(written, inputs["input_ids"].shape[1])
    pairs = zip(answers, asked.questions, strict=True)
    return np.array([int(answer == question.answer) for answer, question in pairs])


def score(
    seer: Seer,
    asked: Mapping[str, Examples],
    method: Method | None = None,
    *,
    batch: int = 64,
) -> dict[str, np.ndarray]:
    """`right` for every kind of question."""
    return {kind: right(seer, part, method, batch=batch) for kind, part in asked.items()}


def mean(scores: Mapping[str, np.ndarray]) -> float:
    """Mean over kinds of their accuracies: every kind counts the same."""
    return float(np.mean([part.mean() for part in scores.values()]))


@dataclass(frozen=True)
class Row:
    """Accuracy of one kind of question."""

    kind: str
    n: int
    accuracy: float
    blind: float


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON-ready dictionaries."""
    return [asdict(row) for row in rows]
