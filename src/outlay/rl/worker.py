"""A helper process that calls one function: `python -m outlay.rl.worker module:function`.

Requests are lists of arguments, one JSON line each, and so are the answers: `[true, result]`, or
`[false, message]` where the function raised. `outlay.rl.guard` starts and ends such processes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from outlay.evals.helper import answering

_MEMORY = 4 << 30  # bytes of address space


def load(target: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def serve(target: str) -> None:
    """Answer requests until standard input ends."""
    out = answering(_MEMORY)
    function = load(target)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        answer: list[Any]
        try:
            answer = [True, function(*json.loads(line))]
            text = json.dumps(answer)
        except Exception as error:
            text = json.dumps([False, f"{type(error).__name__}: {error}"[:500]])
        print(text, file=out, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
