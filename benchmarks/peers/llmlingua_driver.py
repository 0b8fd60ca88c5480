"""Runs LLMLingua in its own environment: one JSON request on stdin, one JSON answer on stdout.

The library counts kept text in the encoding of a hosted model, whose table it downloads at start.
Here it counts with the target's own tokenizer: no network, and the same unit as the budget's.
Its transformers is older than the one that saved the model: `older` rewrites what changed its name.
"""

import json
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path


def older(source: Path, target: Path) -> Path:
    """The model folder `source` as transformers 4 reads it, in `target`."""
    for path in source.iterdir():
        (target / path.name).symlink_to(path)
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((source / name).read_text())
        if name == "config.json":
            values["rope_theta"] = values.pop("rope_parameters")["rope_theta"]
            values["torch_dtype"] = values.pop("dtype")
        else:
            values["tokenizer_class"] = "PreTrainedTokenizerFast"
            values["clean_up_tokenization_spaces"] = False  # else decoded code loses spaces
        (target / name).unlink()
        (target / name).write_text(json.dumps(values))
    return target


def main() -> None:
    request = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # the library prints
    answer = {}
    try:
        import tiktoken
        import torch
        from llmlingua import PromptCompressor
        from transformers import AutoTokenizer

        folder = str(older(Path(request["model"]), Path(tempfile.mkdtemp())))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tiktoken.encoding_for_model = lambda _: tokenizer  # type: ignore[assignment]
        torch.set_num_threads(request["threads"])
        compressor = PromptCompressor(folder, device_map="cpu")
        # The library finds the end of the question by tokens: a chunk must not begin with a blank.
        chunks = [text for chunk in request["chunks"] if (text := chunk.strip())]
        start, cpu = time.perf_counter(), time.process_time()
        result = compressor.compress_prompt(
            chunks,
            question=request["question"],
            target_token=request["budget"],
            rank_method="longllmlingua",
            condition_in_question="after_condition",
            reorder_context="original",
            condition_compare=True,
            concate_question=False,
        )
        answer = {
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - cpu,
            "text": result["compressed_prompt"],
        }
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"[:300]}
    answer["maxrss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    json.dump(answer, out)


if __name__ == "__main__":
    main()
