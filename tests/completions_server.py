"""A completions server on loopback that runs a real local model, with or without its own limit on
thinking."""

from __future__ import annotations

from contextlib import AbstractContextManager

from json_server import JsonHandler, JsonServer, running
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.models.base import SamplingParams
from outlay.models.local import LocalModel

MODEL = "tiny"


class Handler(JsonHandler):
    server: Server

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": MODEL, "owned_by": self.server.kind}]})

    def do_POST(self) -> None:
        body = self.body()
        self.server.requests.append(body)
        model = self.server.model
        stop = tuple(body.get("stop", ()))
        limit = body["max_tokens"]
        sampling = SamplingParams(
            max_tokens=limit, stop=stop, min_tokens=body.get("min_tokens", 0), include_stop=False
        )
        think = body.get("thinking_token_budget")
        if think is None:
            made = model.generate(body["prompt"], None, sampling)
            text, finish, stopped = made.text, made.finish_reason, made.finish_reason == "stop"
        else:
            inner = ThinkingBudget(max_think=think, overthink_prefix="", newline="", max_answer=10)
            done = inner.generate(model, body["prompt"])
            text, finish, stopped = f"{done.thinking}</think>{done.text}", "eos", False
        prompt = len(model.prompt_ids(body["prompt"]))
        generated = model.count(text) + (finish in ("eos", "stop"))
        self.reply(
            {
                "choices": [
                    {
                        "index": 0,
                        "text": text,
                        "finish_reason": "length" if finish == "length" else "stop",
                        "stop_reason": stop[0] if stopped and self.server.kind == "vllm" else None,
                    }
                ],
                "usage": {
                    "prompt_tokens": prompt,
                    "completion_tokens": generated,
                    "total_tokens": prompt + generated,
                },
            }
        )


class Server(JsonServer):
    def __init__(self, model: LocalModel, kind: str) -> None:
        super().__init__(Handler)
        self.model, self.kind = model, kind


def serving(model: LocalModel, kind: str = "someone") -> AbstractContextManager[Server]:
    """Serve `model`; kind "vllm" takes the stop string off and says which one it was."""
    return running(Server(model, kind))
