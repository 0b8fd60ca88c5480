"""The whole recipe of the shipped heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from outlay.audit.embedding import Embedder
from outlay.audit.heads import Head, Heads, cosine
from outlay.stats import auc
from outlay.testbeds.coin.calibrate import calibrate, detectable, parted
from outlay.testbeds.coin.traces import SOURCES, Source, Split, Trace, traces
from outlay.testbeds.coin.train import Pairs, TrainConfig, pairs, train_head


def mixed(
    split: Split, n: int, block: int = 32, seed: int = 0, sources: Sequence[Source] = SOURCES
) -> list[Trace]:
    """`n` traces of every source, sources in turn."""
    columns = [traces(source, split, n, seed, block) for source in sources]
    return [trace for row in zip(*columns, strict=True) for trace in row]


def make(
    config: TrainConfig, train: int, held: int, embed: Embedder, say: Callable[[str], object]
) -> Heads:
    """Train heads on `train` traces per source and calibrate on `held` others."""
    say("embedding the training traces")
    token_pairs, answer_pairs = pairs(mixed("train", train, config.block), embed, config)
    say(f"training on {len(token_pairs.labels_N)} and {len(answer_pairs.labels_N)} pairs")
    heads = Heads(train_head(token_pairs, config), train_head(answer_pairs, config))
    say("calibrating")
    others = mixed("calibrate", held, config.block)
    heads = calibrate(heads, others, embed, config)
    measured = pairs(others, embed, replace(config, seed=config.seed + 1, noise=0))
    about = {
        "block": config.block,
        "config": asdict(config),
        "traces": {"train": train, "calibrate": held, "sources": list(SOURCES)},
        "auc": {
            name: quality(head, data)
            for name, head, data in zip(
                ("tokens", "answer"), (heads.tokens, heads.answer), measured, strict=True
            )
        },
        "detectable": detectable(heads, parted(others)[1], embed, config.block),
    }
    return replace(heads, about=about)


def quality(head: Head, data: Pairs) -> dict[str, float]:
    """How well a head tells pairs apart on held-out traces, beside the raw cosine."""
    right = np.asarray(data.labels_N, bool)
    return {
        "head": round(auc(head(data.left_ND, data.right_ND), right), 4),
        "cosine": round(auc(cosine(data.left_ND, data.right_ND), right), 4),
    }
