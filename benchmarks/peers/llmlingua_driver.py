"""Runs LLMLingua in its own environment: one JSON request on stdin, one JSON answer on stdout."""

import json
import resource
import sys
import time
import traceback


def main() -> None:
    request = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # the library prints
    answer = {}
    try:
        import torch
        from llmlingua import PromptCompressor

        torch.set_num_threads(request["threads"])
        compressor = PromptCompressor(request["model"], device_map="cpu")
        chunks = request["chunks"]
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
