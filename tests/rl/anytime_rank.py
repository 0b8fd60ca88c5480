"""One process of two: a step of anytime reasoning with trees, then one with rows."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from anytime_runs import METHOD

from outlay.rl import make_config
from outlay.rl.anytime import AnytimeTrainer
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.chainarith_rl import dataset, load


def main(folder: Path) -> None:
    """Train, and write the gradient's norm and the ledger."""
    torch.set_num_threads(1)
    found = {}
    for packing in ("tree", "rows"):
        model, tokenizer = load()
        method = replace(METHOD, packing=packing, skip_flat=True)
        settings = {"max_steps": 1, "per_device_train_batch_size": 6, "seed": 5}
        trainer = AnytimeTrainer(
            model,
            method,
            make_config(method, folder / packing, settings, cpu=True),
            dataset(24, seed=2, ops=(2, 6)),
            verifier=ChainArithVerifier(),
            processing_class=tokenizer,
        )
        trainer.train()
        log = next(log for log in trainer.state.log_history if "grad_norm" in log)
        found[packing] = {
            "grad_norm": log["grad_norm"],
            "ledger": [(e.note, e.prompt_new, e.generated) for e in trainer.tokens.entries],
        }
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
