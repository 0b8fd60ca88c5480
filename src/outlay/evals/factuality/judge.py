"""A language model as judge: is a gold entity or value contained in the prediction? 0 or 1.

fs1 (arXiv 2505.11140) asks Llama-3.3-70B for 5 tokens. Here the temperature is 0, verdicts are
cached, and a reply that is neither 0 nor 1 counts as 0 and is counted. "Contained" rewards a
prediction that lists many entities: report the length of the answers beside it.

The judge sees the gold answers, so it may score, never choose. `SelfJudge` sees the question and an
answer only; it is what best-of-n may choose by.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outlay.errors import CapabilityError, InputError, ResultsError
from outlay.models.base import Account, Message, Model, Prompt, SamplingParams

ASK = """You check answers to questions.

Gold answers: {gold}
Prediction: {prediction}

Is a gold entity or value contained in the prediction? Reply with 0 for no or 1 for yes, nothing \
else."""
MAX_TOKENS = 5
MAX_TEXT = 4_000
_VERDICT = re.compile(r"(?<![\w.])[01](?![\w.]*\d)")


@dataclass(frozen=True)
class Verdict:
    """A judge's word: right or not, and whether it could be read."""

    right: bool
    parsed: bool


@dataclass(frozen=True)
class Judge:
    """Asks a model whether predictions contain a gold answer.

    Args:
        model: local, embedded or an endpoint.
        cache: JSON-lines file that keeps verdicts between runs; None keeps them in memory.
        max_tokens: of a reply.

    Raises:
        InputError: without a model, or for max_tokens below 1.
        ResultsError: for a cache that is no cache of a judge.
    """

    model: Model
    cache: str | os.PathLike[str] | None = None
    max_tokens: int = MAX_TOKENS
    _known: dict[str, Verdict] = field(init=False, repr=False, compare=False)
    _lock: threading.Lock = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, Model):
            raise InputError(
                f"judge model is {self.model!r}; give a model (outlay.models.load, or an endpoint "
                "such as a local vLLM server)"
            )
        if self.max_tokens < 1:
            raise InputError(f"max_tokens={self.max_tokens}; a verdict takes at least one")
        object.__setattr__(self, "_known", _load(self.cache))
        object.__setattr__(self, "_lock", threading.Lock())

    def verdict(
        self, prediction: str, answers: Sequence[Sequence[str]], *, account: Account | None = None
    ) -> Verdict:
        """The verdict on one prediction; from the cache where it is known.

        Args:
            prediction: an extracted answer; an empty one is wrong without asking.
            answers: names of every gold entity.
            account: where tokens are booked, under the role "judge".

        Raises:
            InputError: for no gold answers.
        """
        gold = [name for names in answers for name in names]
        if not gold:
            raise InputError("no gold answers to judge by; give at least one")
        if not prediction.strip():
            return Verdict(False, True)
        text = ASK.format(
            gold=json.dumps(gold, ensure_ascii=False)[:MAX_TEXT],
            prediction=json.dumps(prediction[:MAX_TEXT], ensure_ascii=False),
        )
        key = hashlib.sha256(f"{self.model.name}\0{self.max_tokens}\0{text}".encode()).hexdigest()
        with self._lock:
            if key in self._known:
                return self._known[key]
        place = (account or Account()).at(role="judge", method="judge")
        made = self.model.generate(
            as_chat(self.model, text), None, SamplingParams(self.max_tokens), account=place
        )
        said = _VERDICT.findall(made.text)
        verdict = Verdict(bool(said) and said[0] == "1", bool(said))
        with self._lock:
            self._known[key] = verdict
            if self.cache is not None:
                row = {"key": key, "right": verdict.right, "parsed": verdict.parsed}
                with Path(self.cache).open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
        return verdict

    def unparsed(self) -> int:
        """Cached verdicts that could not be read, each counted as 0."""
        with self._lock:
            return sum(not verdict.parsed for verdict in self._known.values())


@dataclass(frozen=True)
class SelfJudge:
    """Scores an answer without the gold: how likely "Yes" is against "No".

    Args:
        model: a local model (it must score given text).
    """

    model: Model

    def score(self, question: str, answer: str, *, account: Account | None = None) -> float:
        """Probability of "Yes" among "Yes" and "No" to whether the answer is right.

        Raises:
            CapabilityError: if the model cannot score given text.
        """
        model = self.model
        if not model.capabilities.prompt_logprobs:
            raise CapabilityError(
                f"{model.name} cannot score given text; choose among samples with a local model"
            )
        text = (
            f"Question: {question}\nProposed answer: {answer}\n"
            "Is the proposed answer right? Reply Yes or No."
        )
        place = (account or Account()).at(role="verifier", method="self-judge")
        root = model.open(as_chat(model, text), account=place)
        try:
            yes, no = (sum(row) for row in model.score(root, ["Yes", "No"], account=place))
        finally:
            model.release(root)
        return 1.0 / (1.0 + math.exp(min(700.0, no - yes)))


def as_chat(model: Model, text: str) -> Prompt:
    """`text` as a chat turn where the model takes chats, else as it is."""
    if model.takes_chat:
        return [Message(role="user", content=text)]
    return text


def _load(cache: str | os.PathLike[str] | None) -> dict[str, Verdict]:
    if cache is None or not Path(cache).exists():
        return {}
    found = {}
    for at, line in enumerate(Path(cache).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            found[str(row["key"])] = Verdict(bool(row["right"]), bool(row["parsed"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(
                f"{cache}, line {at} is no verdict of a judge; move the file away"
            ) from error
    return found
