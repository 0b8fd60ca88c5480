"""A process that scores: compressors and step verifiers, one JSON job a line.

Run by `Scorers`; a crash or a hang here costs one job and not the gateway. Nothing but answers
goes to the standard output: whatever a library prints goes to the standard error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any


def compress(job: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten a text."""
    from outlay.budget import Budget
    from outlay.gateway.bounds import counter

    count = counter(Path(job["tokenizer"]) if job["tokenizer"] else None)
    made = _compressor(job["method"], job["scorer"]).compress(
        job["text"], job["question"], Budget(tokens=job["tokens"], counts="prompt"), count=count
    )
    return {
        "text": made.text,
        "tokens": count(made.text),
        "original": count(job["text"]),
        "ledger": made.ledger.to_dict(),
        "warnings": list(made.warnings),
    }


def judge(job: Mapping[str, Any]) -> dict[str, Any]:
    """Score the steps of solutions."""
    from outlay.models.base import Account
    from outlay.reason.base import Question

    verifier = _verifier(job["verifier"], job["scorer"])
    questions = [
        Question(each["text"], kind=each["kind"], delimiter=each["delimiter"])
        for each in job["questions"]
    ]
    accounts = [Account(stage="think", role="verifier", method=job["method"]) for _ in questions]
    scores = verifier.score(questions, job["paths"], job["known"], accounts=accounts)
    ledgers = [account.ledger.to_dict() for account in accounts]
    return {"scores": [list(map(float, row)) for row in scores], "ledgers": ledgers}


def load(job: Mapping[str, Any]) -> dict[str, Any]:
    """Load what jobs will need."""
    if job.get("verifier"):
        _verifier(job["verifier"], job["scorer"])
    else:
        _compressor(job["method"], job["scorer"])
    return {}


@cache
def _compressor(spec: str, scorer: str) -> Any:
    from outlay import registry
    from outlay.comparison import needs

    given = {"scorer": _model(scorer)} if needs(spec, "scorer") else {}
    return registry.create("methods", spec, given=given)


@cache
def _verifier(spec: str, scorer: str) -> Any:
    import dataclasses

    from outlay import registry

    fields = dataclasses.fields(registry.find("verifiers", registry.parse_spec(spec)[0]).load())
    asks = any(field.name == "model" for field in fields)
    return registry.create("verifiers", spec, given={"model": _model(scorer)} if asks else {})


@cache
def _model(spec: str) -> Any:
    from outlay import models

    return models.load(spec)


JOBS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "compress": compress,
    "judge": judge,
    "load": load,
}


def _end_with(parent: int) -> None:
    """End when the gateway has: a job that hangs would never see the end of its input."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main(threads: int, parent: int) -> None:
    """Answer jobs until the input ends."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for line in sys.stdin:
        job = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"ok": JOBS[job["do"]](job)}
        except Exception as error:  # whatever a method raises is one job's failure
            answer = {"error": type(error).__name__, "detail": str(error)[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
