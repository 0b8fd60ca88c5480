"""Scenes and questions of the seer as CoViPAL's training data: prompts with their answers.

The tower is frozen, so every scene is encoded once, and several questions share its features.

B rows, T prompt tokens, N visual tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from outlay.errors import InputError
from outlay.testbeds.fashion import Split
from outlay.testbeds.seer.model import Seer
from outlay.testbeds.seer.questions import (
    ONE_TOKEN,
    VOCABULARY,
    Question,
    possible,
)
from outlay.testbeds.seer.scenes import Scenes, generator, scenes
from outlay.vision.covipal.lessons import Batch

LEAST_DENSE = 4  # objects of a dense scene
MAX_SCENES = 100_000


def drawn(
    seer: Seer,
    n: int,
    *,
    seed: int | Sequence[int],
    split: Split = "train",
    min_objects: int = LEAST_DENSE,
    max_objects: int | None = None,
) -> Scenes:
    """Dense scenes for a seer of one picture: as many objects as it was trained on.

    Args:
        seer: of size S or M.
        n: scenes.
        seed: of the scenes.
        split: of their source pictures.
        min_objects: fewest objects; no more than the most.
        max_objects: None is the size's own.

    Raises:
        InputError: for another size, or numbers out of range.
    """
    if seer.size.name not in ("S", "M"):
        raise InputError(f"size {seer.size.name} has tiles or frames; use size S or M")
    most = seer.size.max_objects if max_objects is None else max_objects
    return scenes(
        n,
        side=seer.size.side,
        patch=seer.size.patch,
        min_objects=min(min_objects, most),
        max_objects=most,
        split=split,
        seed=seed,
    )


def asked(
    seen: Scenes, kinds: Sequence[str], each: int, rng: np.random.Generator
) -> list[tuple[int, Question]]:
    """(scene, question), `each` for every scene: kinds are equally likely, so are yes and no."""
    made = []
    for scene in range(len(seen)):
        found = {kind: possible(seen, scene, kind, rng) for kind in kinds}
        open_kinds = [kind for kind, questions in found.items() if questions]
        if not open_kinds:
            raise InputError(f"no question of {tuple(kinds)} fits scene {scene}; name more kinds")
        for _ in range(each):
            questions = found[open_kinds[rng.integers(len(open_kinds))]]
            answers = sorted({question.answer for question in questions})
            if answers[0] in (("no",), ("yes",)):
                answer = answers[rng.integers(len(answers))]
                questions = [question for question in questions if question.answer == answer]
            made.append((scene, questions[rng.integers(len(questions))]))
    return made


def batches(
    seer: Seer,
    n: int,
    *,
    seed: int = 0,
    rows: int = 32,
    each: int = 2,
    kinds: Sequence[str] = ONE_TOKEN,
    split: Split = "train",
    min_objects: int = LEAST_DENSE,
    progress: Callable[[int, int], None] | None = None,
) -> list[Batch]:
    """Labelled prompts whose answers are one word.

    Args:
        seer: of size S or M.
        n: batches.
        seed: of scenes and questions.
        rows: of a batch.
        each: questions of a scene; divides `rows`.
        kinds: of questions, with one-word answers.
        split: of the scenes' source pictures.
        min_objects: fewest objects of a scene.
        progress: is told how many batches of how many are done.

    Raises:
        InputError: for numbers out of range, or a kind whose answers have more words.
    """
    if rows < 1 or each < 1 or rows % each:
        raise InputError(f"rows={rows}, each={each}; rows must be a multiple of each, both >= 1")
    if n < 1 or n * rows // each > MAX_SCENES:
        raise InputError(f"n={n} batches of {rows // each} scenes; at most {MAX_SCENES} scenes")
    if unknown := [kind for kind in kinds if kind not in ONE_TOKEN]:
        raise InputError(f"kinds={tuple(kinds)}: {unknown[0]!r} has no one-word answer")
    made: list[Batch] = []
    for index in range(n):
        seen = drawn(
            seer, rows // each, seed=(seed, 31, index), split=split, min_objects=min_objects
        )
        rng = generator((seed, 32, index), split)
        made.append(labelled(seer, seen, asked(seen, kinds, each, rng)))
        if progress is not None:
            progress(index + 1, n)
    return made


def labelled(seer: Seer, seen: Scenes, questions: Sequence[tuple[int, Question]]) -> dict[str, Any]:
    """One batch: questions about scenes, the answer's word last and labelled."""
    features_BNC = seer.features(seen)[:, 0]
    inputs = seer.inputs_of_features(
        [[features_BNC[scene]] for scene, _ in questions], [question for _, question in questions]
    )
    words = torch.tensor([[VOCABULARY[question.answer[0]]] for _, question in questions])
    words = words.to(inputs["input_ids"].device)
    ids_BT = torch.cat([inputs["input_ids"], words], 1)
    labels_BT = torch.full_like(ids_BT, -100)
    labels_BT[:, -1:] = words
    ones = torch.ones_like(words)
    return {
        **inputs,
        "input_ids": ids_BT,
        "attention_mask": torch.cat([inputs["attention_mask"], ones], 1),
        "labels": labels_BT,
    }
