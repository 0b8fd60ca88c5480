"""What the tests of schedules share: random requests, tiny servers, and a slow reference."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from outlay.schedule import ChunkedPrefill, LayeredPrefill, Orca, Request, Scheduler
from outlay.schedule.serving import Server, Shape
from outlay.schedule.simulator import MoEShape, Simulated

SCHEDULERS: dict[str, Scheduler] = {
    "layered": LayeredPrefill(ref_chunk=8, max_groups=6),
    "layered, cut prompts": LayeredPrefill(ref_chunk=8, max_num_batched_tokens=24),
    "layered, official": LayeredPrefill(ref_chunk=8, rule="official", num_stages=4),
    "layered, own groups": LayeredPrefill(group_split=(1, 3, 2)),
    "layered, two groups a step": LayeredPrefill(ref_chunk=8, groups_per_step=2),
    "layered, short first": LayeredPrefill(ref_chunk=8, short_first=True),
    "chunked": ChunkedPrefill(16),
    "orca": Orca(),
}
LAYERS = 6


def some_requests(
    n: int, seed: int = 0, *, longest: int = 60, vocabulary: int = 200, gap: float = 0.5
) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(
            i,
            tuple(rng.randrange(5, vocabulary) for _ in range(rng.randrange(1, longest))),
            rng.randrange(1, 12),
            gap * i,
        )
        for i in range(n)
    ]


def second(shape: Shape) -> float:
    """Every iteration takes a tenth of a second."""
    return 0.1


def simulated(scheduler: Scheduler, *, num_blocks: int = 200, layers: int = LAYERS) -> Server:
    """A server that computes nothing, on the virtual clock."""
    model = MoEShape(layers, 16, 2, 100)
    return Server(Simulated(model), scheduler, num_blocks, clock="virtual", cost=second)


@torch.inference_mode()
def by_hand(network: Any, request: Request) -> tuple[int, ...]:
    """Greedy tokens without any cache: the whole sequence again for every token."""
    ids = list(request.prompt)
    for _ in range(request.max_new):
        logits_TV = network(torch.tensor([ids]), use_cache=False).logits[0]
        ids.append(int(logits_TV[-1].argmax()))
    return tuple(ids[len(request.prompt) :])


def ends(server: Server) -> Sequence[str | None]:
    return [timing.end for timing in server.timings.values()]
