"""Runs kvpress in its own environment: one JSON request on stdin, one JSON answer on stdout.

A prompt is read inside `with press(model)`, which thins the cache of every layer as kvpress does;
the question follows outside of it, at the positions after the prompt, as in kvpress's pipeline.
"""

import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from llmlingua_driver import older


def main() -> None:
    request = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    answer: dict[str, Any] = {}
    try:
        import kvpress
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache

        torch.set_num_threads(request["threads"])
        folder = str(older(Path(request["model"]), Path(tempfile.mkdtemp())))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for name in request["presses"]:
            press = getattr(kvpress, name)(compression_ratio=1 - request["share"])
            found, rows, cpu = [], 0, 0.0
            for part in request["batches"]:
                ids = torch.tensor(part["ids"])
                question = torch.tensor(part["question"])
                options = torch.tensor(part["options"])
                cache = DynamicCache()
                start = time.process_time()
                with torch.inference_mode():
                    with press(model):
                        model.model(input_ids=ids, past_key_values=cache)
                    rows = cache.layers[0].keys.shape[-2]
                    places = ids.shape[1] + torch.arange(question.shape[1])
                    logits = model(
                        input_ids=question,
                        past_key_values=cache,
                        position_ids=places[None].expand(question.shape),
                        logits_to_keep=1,
                    ).logits[:, -1]
                cpu += time.process_time() - start
                found += logits.gather(1, options).argmax(-1).tolist()
            answer[name] = {"picked": found, "rows": rows, "cpu": cpu}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"[:300]}
    json.dump(answer, out)


if __name__ == "__main__":
    main()
