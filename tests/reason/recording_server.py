"""A completions server on loopback, as vLLM answers, that runs a real local model and keeps what it
was asked: samples with seeds, stop strings, log-probabilities, and echoed prompts with theirs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from threading import Lock
from typing import Any

import torch

from json_server import JsonHandler, JsonServer, running
from outlay.models.base import Branch, SamplingParams
from outlay.models.local import LocalModel

MODEL = "served"


class Handler(JsonHandler):
    server: Server

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": MODEL, "owned_by": "vllm"}]})

    def do_POST(self) -> None:
        body = self.body()
        with self.server.lock:
            self.server.requests.append(dict(body))
            if not self.server.echoes:
                body.pop("echo", None)
            if not isinstance(body["prompt"], str):
                self.reply({"error": {"message": "give the prompt as text"}}, 400)
                return
            self.reply(self.server.complete(body))


class Server(JsonServer):
    def __init__(self, model: LocalModel, echoes: bool) -> None:
        super().__init__(Handler)
        self.model, self.echoes = model, echoes
        self.lock = Lock()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """One request, with `n` choices."""
        model = self.model
        sampling = SamplingParams(
            max_tokens=body["max_tokens"],
            temperature=body.get("temperature", 1.0),
            seed=body.get("seed", 0),
            stop=tuple(body.get("stop", ())),
            min_tokens=body.get("min_tokens", 0),
            include_stop=False,
            logprobs=True,
        )
        root = model.open(body["prompt"])
        [children] = model.extend([root], sampling, body.get("n", 1))
        read = self.read(body["prompt"]) if body.get("echo") else ([], [])
        choices = [self.choice(at, one, body, read) for at, one in enumerate(children)]
        prompt = len(root.token_ids)
        made = sum(len(child.token_ids) for child in children)
        model.release(root)
        usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
        return {"choices": choices, "usage": usage}

    def choice(
        self, index: int, child: Branch, body: dict[str, Any], read: tuple[list[str], list[Any]]
    ) -> dict[str, Any]:
        text = child.text.removesuffix("<eos>")
        stopped = child.finish == "stop"
        reason = next((s for s in body.get("stop", ()) if stopped), None)
        row: dict[str, Any] = {
            "index": index,
            "text": (body["prompt"] if body.get("echo") else "") + text,
            "finish_reason": "length" if child.finish == "length" else "stop",
            "stop_reason": reason,
        }
        if body.get("logprobs"):
            assert child.logprobs is not None
            row["logprobs"] = {
                "tokens": read[0] + [self.model.decode([i]) for i in child.token_ids],
                "token_logprobs": read[1] + list(child.logprobs),
            }
        return row

    def read(self, prompt: str) -> tuple[list[str], list[Any]]:
        """Tokens of a prompt, and their log-probabilities; none for the first."""
        ids = self.model.prompt_ids(prompt)
        with torch.inference_mode():
            logits_TV = self.model.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        values = [float(logits_TV[at, token]) for at, token in enumerate(ids[1:])]
        return [self.model.decode([i]) for i in ids], [None, *values]


def serving(model: LocalModel, *, echoes: bool = True) -> AbstractContextManager[Server]:
    """Serve `model` until the block ends; without `echoes` the request for an echo is ignored."""
    return running(Server(model, echoes))
