"""One process of two: trains three steps and writes what it saw. See test_tokenflex_training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.vision.test_tokenflex_training import arguments, flexible_llava, rows

from outlay.vision.tokenflex import CountDraw, TokenFlexTrainer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    draw = CountDraw((1, 4, 16), (0.3, 0.3, 0.4), draw="sample")
    trainer = TokenFlexTrainer(
        flexible_llava(), arguments(folder, max_steps=3), draw, train_dataset=rows(12)
    )
    rank = trainer.args.process_index
    torch.manual_seed(rank)  # global generators differ
    trainer.train()
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    steps = [[s.step, s.images, s.tokens, s.computed] for s in trainer.visual.steps]
    seen = {"steps": steps, "weights": float(weights.double().sum())}
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
