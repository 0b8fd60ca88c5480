"""What both stages train on: batches of inputs, each with the streams and targets of stage 1.

The frozen model runs once over every batch; guidance attention is kept (N numbers a row) and never
computed again. The streams that enter the pruning layers are kept too, unless they are too large.
Labelled tokens are left out of the streams: an answer guides, and cannot be read at inference.

B rows, T prompt tokens, N visual tokens of a row, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from outlay.errors import InputError
from outlay.vision.covipal.guidance import Queries, Sinks, guidance_layer, targets, unpruned
from outlay.vision.covipal.tokens import Tokens, Watch, answers

Batch = Mapping[str, Any]
"""A model's inputs as its processor makes them; `labels` (-100 off the answer) are optional."""
MAX_BATCHES = 1_000_000
MAX_STATE_BYTES = 16 * 2**30


@dataclass(frozen=True, eq=False)
class Lessons(Dataset[dict[str, Any]]):
    """Batches with what stage 1 needs of them; an item is one whole batch.

    Args:
        batches: inputs of the model.
        prune_layers: before which tokens will go.
        targets: guidance layer -> of every batch (B, N) attention.
        states: of every batch, layer -> streams; empty where they are not kept.
        model: the frozen model, to make the streams again where they are not kept.
        guide: which of the guidance layers teaches.
    """

    batches: Sequence[Batch]
    prune_layers: tuple[int, ...]
    targets: Mapping[int, Sequence[Tensor]]
    states: Sequence[Mapping[int, Tokens]]
    model: Any
    guide: int

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`streams`: layer -> tensors of `Tokens`; `target`; `inputs` of the model."""
        states = self.states[index] if self.states else self._again(index)
        return {
            "streams": {str(layer): parts(tokens) for layer, tokens in states.items()},
            "target": self.targets[self.guide][index],
            "inputs": dict(self.batches[index]),
        }

    def guided_by(self, layer: int) -> Lessons:
        """The same lessons with another of their guidance layers.

        Raises:
            InputError: for a layer whose attention was not kept.
        """
        if layer not in self.targets:
            raise InputError(f"no attention of layer {layer} was kept; kept: {[*self.targets]}")
        return Lessons(
            self.batches, self.prune_layers, self.targets, self.states, self.model, layer
        )

    def _again(self, index: int) -> dict[int, Tokens]:
        watch = Watch(self.model, entering=self.prune_layers)
        watch.hide = answers(self.batches[index])
        with watch:
            unpruned(self.model, self.batches[index])
        return {layer: watch.tokens(layer) for layer in self.prune_layers}


def parts(tokens: Tokens) -> dict[str, Tensor]:
    """Streams as a dictionary, which loaders can move."""
    return {f.name: getattr(tokens, f.name) for f in fields(tokens)}


def collect(
    model: Any,
    batches: Sequence[Batch],
    *,
    prune_layers: Sequence[int] = (0,),
    guidance: int | Sequence[int] | None = None,
    queries: Queries = "text",
    sinks: Sinks = "keep",
    keep_states: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Lessons:
    """Run the frozen model once over all batches.

    Args:
        model: a vision-language model in eval mode.
        batches: its inputs, with the answer in them where it is known.
        prune_layers: before which tokens will go.
        guidance: the guidance layer; several keep the attention of each, and the first teaches;
            None is two thirds of the way.
        queries: whose attention counts: all "text" after the image, or the question's "last" token.
        sinks: "keep", "clip" or "baseline", see `targets`.
        keep_states: keep the streams in memory; else every step runs the model's first layers
            again.
        progress: is told how many batches of how many are done.

    Raises:
        InputError: for no batches, a layer out of range, a prompt without image or without text
            after it, or streams that are too large to keep.
    """
    if not 1 <= len(batches) <= MAX_BATCHES:
        raise InputError(f"{len(batches)} batches; give 1 to {MAX_BATCHES}")
    if not prune_layers:
        raise InputError("no prune layer; give at least one")
    watch = Watch(model, entering=prune_layers)  # checks the layers
    depth, deepest = watch.parts.num_layers, max(prune_layers)
    if guidance is None or isinstance(guidance, int):
        wanted = [guidance_layer(depth, guidance, deepest)]
    else:
        wanted = list(guidance)
    watch = Watch(model, entering=prune_layers, attention=wanted)
    found: dict[int, list[Tensor]] = {layer: [] for layer in wanted}
    states: list[dict[int, Tokens]] = []
    size = 0
    for index, batch in enumerate(batches):
        watch.hide = answers(batch)
        try:
            with watch:
                unpruned(model, batch)
                for layer in wanted:
                    made = targets(watch, layer, queries=queries, sinks=sinks)
                    found[layer].append(made.cpu())
        except InputError as error:
            raise InputError(f"batch {index}: {error}") from error
        if keep_states:
            states.append({layer: watch.tokens(layer) for layer in prune_layers})
            size += sum(t.nbytes for one in states[-1].values() for t in parts(one).values())
            if size > MAX_STATE_BYTES:
                raise InputError(
                    f"the streams of {index + 1} batches take {size / 2**30:.1f} GiB; set "
                    "keep_states=False, or give fewer batches"
                )
        if progress is not None:
            progress(index + 1, len(batches))
    return Lessons(batches, tuple(prune_layers), found, states, model, wanted[0])
