"""Calibration data: batches with answers, and how well a model does on them under keep rates.

Shapes: B rows of a batch, T tokens, A tokens of an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outlay.errors import InputError
from outlay.vision.gsearch.schedule import Rates
from outlay.vision.parts import Parts

if TYPE_CHECKING:
    from outlay.vision.gsearch.method import GSearch

MAX_BATCHES = 100_000


@dataclass(frozen=True)
class Batch:
    """Prompts with images as the processor made them, padded on the left, and their answers.

    Args:
        inputs: of the model, `input_ids` among them.
        answers: of each row, the token ids that are right.

    Raises:
        InputError: for no rows, or another number of answers.
    """

    inputs: Mapping[str, Any]
    answers: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        ids = self.inputs.get("input_ids")
        if ids is None or getattr(ids, "ndim", 0) != 2 or not len(ids):
            raise InputError("a batch needs input_ids of shape (rows, tokens), at least one row")
        if len(self.answers) != len(ids):
            raise InputError(f"{len(self.answers)} answers for {len(ids)} rows")
        if not all(len(answer) for answer in self.answers):
            raise InputError("a batch has an empty answer; every row needs at least one token")

    def __len__(self) -> int:
        return len(self.answers)

    def digest(self, seed: int = 0) -> str:
        """SHA-256 of the contents: the same wherever the batch stands."""
        found = hashlib.sha256(str(seed).encode())
        for part in _contents(dict(self.inputs)):
            found.update(part)
        found.update(repr([tuple(map(int, answer)) for answer in self.answers]).encode())
        return found.hexdigest()


def _contents(value: Any) -> Iterator[bytes]:
    """A value's bytes; of tensors all, inside mappings and sequences, too."""
    import torch

    if isinstance(value, torch.Tensor):
        yield repr((value.dtype, tuple(value.shape))).encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield repr(name).encode()
            yield from _contents(value[name])
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _contents(one)
    else:
        yield repr(value).encode()


Metric = Callable[[Any, Batch], Sequence[float]]
"""A figure for each row of a batch, higher is better; the model drops tokens while it is called."""


def accuracy(model: Any, batch: Batch) -> Sequence[float]:
    """1 where the model's greedy answer is right to the last token, else 0."""
    import torch

    longest = max(map(len, batch.answers))
    inputs = {name: _on(model, value) for name, value in batch.inputs.items()}
    with torch.no_grad():
        if longest == 1:
            logits_BV = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
            written = logits_BV.argmax(-1, keepdim=True)
        else:
            prompt = inputs["input_ids"].shape[1]
            written = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
            written = written[:, prompt:]
    rows = zip(written.tolist(), batch.answers, strict=True)
    return [float(row[: len(answer)] == list(map(int, answer))) for row, answer in rows]


def _on(model: Any, value: Any) -> Any:
    return value.to(model.device) if hasattr(value, "to") else value


@dataclass(frozen=True)
class Calibration:
    """A Perf over batches.

    Args:
        method: applied with the rates that are asked for.
        model: that is measured.
        batches: of samples.
        metric: of a batch.
    """

    method: GSearch
    model: Any
    batches: Sequence[Batch]
    metric: Metric

    def __call__(self, rates: Rates) -> Sequence[float]:
        """A figure for each sample."""
        found: list[float] = []
        with self.method.with_rates(rates)(self.model):
            for batch in self.batches:
                each = list(map(float, self.metric(self.model, batch)))
                if len(each) != len(batch):
                    raise InputError(
                        f"the metric gave {len(each)} figures for a batch of {len(batch)} rows; "
                        "give one a row"
                    )
                found += each
        return found

    @property
    def hash(self) -> str:
        """SHA-256 of the batches, whatever their order."""
        found = hashlib.sha256()
        for one in sorted(batch.digest() for batch in self.batches):
            found.update(one.encode())
        return found.hexdigest()


def usable(batches: Iterable[Batch], model: Parts, knob: str) -> list[Batch]:
    """The batches as a list, if they can be used for calibration.

    Args:
        batches: of samples.
        model: its parts; says which tokens are visual.
        knob: named in errors.

    Raises:
        InputError: for none, too many, something else, or a row without images.
    """
    import torch

    found = list(batches)
    if not found:
        raise InputError(f"{knob} is empty; a search needs prompts with images")
    if len(found) > MAX_BATCHES:
        raise InputError(f"{knob} has {len(found)} batches; at most {MAX_BATCHES}")
    images = torch.tensor(model.image_ids)
    for number, batch in enumerate(found):
        if not isinstance(batch, Batch):
            raise InputError(
                f"{knob}[{number}] is a {type(batch).__name__}; give Batch(inputs, answers), or a "
                "function of keep rates"
            )
        has = torch.isin(batch.inputs["input_ids"].cpu(), images).any(1)
        if not bool(has.all()):
            raise InputError(
                f"row {int((~has).nonzero()[0])} of {knob}[{number}] has no image; there is "
                "nothing to drop in it"
            )
    return found


def chosen(batches: Sequence[Batch], size: int, share: float, seed: int) -> tuple[list[Batch], ...]:
    """Batches to search on, and to check on: by content and seed, whatever their order.

    Args:
        batches: of samples.
        size: most rows to search on; at least one batch is taken.
        share: of the batches that are kept for the check; none of a single batch.
        seed: of the choice.
    """
    order = sorted(batches, key=lambda batch: batch.digest(seed))
    held = min(len(order) - 1, int(share * len(order) + 0.5))
    check, rest = order[:held], order[held:]
    taken: list[Batch] = []
    rows = 0
    for batch in rest:
        if taken and rows + len(batch) > size:
            break
        taken.append(batch)
        rows += len(batch)
    return taken, check
