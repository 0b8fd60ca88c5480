"""Scores of traces outside the two methods: stored texts, forced answers, log-probabilities.

The output baselines look at the distribution of the first answer token after the thinking was cut
and closed: entropy, margin between the two likeliest tokens, and the inverse of the likeliest's
probability, all through the final norm and the unembedding, as the model itself computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlay.errors import InputError
from outlay.models.base import Account, Branch, LatentModel, Prompt, Trail
from outlay.reason.latent_trajectory.signals import Normalise, Signals, signals
from outlay.reason.latent_trajectory.traces import Layers, latent

if TYPE_CHECKING:
    from outlay.models.local import LocalModel


@dataclass(frozen=True)
class LTScorer:
    """Latent-trajectory signals of any completion.

    Args:
        model: a local one.
        k: tokens of a segment.
        layers: numbers of the decoder layers that are read, or "all", or "last_third".
        normalise: "unit_rms" divides every layer by the RMS of its first segment.
        chunk: tokens of one pass over a stored text; the cache goes on from pass to pass, so memory
            does not grow with the text beyond its keys and values.

    Raises:
        CapabilityError: if the model shows no hidden states.
        InputError: for k or chunk < 1, or unknown layers.
    """

    model: LatentModel
    k: int = 500
    layers: Layers = "all"
    normalise: Normalise = "none"
    chunk: int = 512

    def __post_init__(self) -> None:
        latent(self.model)
        Trail(self.k, self.layers)
        if self.chunk < 1:
            raise InputError(f"chunk={self.chunk}; at least 1 token")

    def score(
        self, prompt: Prompt, thinking: Sequence[int], *, account: Account | None = None
    ) -> Signals:
        """Signals of stored thinking: token ids after the prompt, up to and including its end.

        Raises:
            InputError: for no thinking, or fewer than two segments.
        """
        if len(thinking) <= self.k:
            raise InputError(
                f"thinking of {len(thinking)} tokens has one segment at most; lower k={self.k}"
            )
        branch = self.model.open(prompt, account=account)
        trail = Trail(self.k, self.layers)
        for start in range(0, len(thinking), self.chunk):
            part = list(thinking[start : start + self.chunk])
            branch = self.model.append(branch, part, account=account, trail=trail)
            found = self.model.hidden([branch], account=account)
        return signals(found[0], self.normalise)


@dataclass(frozen=True)
class Output:
    """The distribution of the first answer token, and what is decoded from there.

    Args:
        entropy: in nats.
        margin: likeliest minus second likeliest probability.
        inverse: one over the likeliest's probability.
        text: the greedy answer.
    """

    entropy: float
    margin: float
    inverse: float
    text: str


def forced(
    model: LocalModel,
    thoughts: Sequence[Branch],
    close: str,
    answer_open: str,
    *,
    percent: int = 100,
    tokens: int = 8,
    account: Account | None = None,
) -> list[Output]:
    """Cut the thinking of branches, force an answer, and look at its first token.

    Args:
        model: a local one.
        thoughts: ends of thinking; each right below its prompt.
        close: end-of-think marker.
        answer_open: what opens the answer.
        percent: of the thinking's tokens (without its marker) that are kept; an integer, since
            shares such as 0.7 lose a token to rounding.
        tokens: decoded of the answer.
        account: where the work is booked.

    Raises:
        InputError: for a percentage outside 0 to 100, or no tokens.
    """
    from outlay.models.base import SamplingParams
    from outlay.models.kv import segment

    if not 0 <= percent <= 100:
        raise InputError(f"percent={percent}; an integer from 0 to 100")
    if tokens < 1:
        raise InputError(f"tokens={tokens}; at least 1")
    account = (account or Account()).at(role="judge")
    ends, marks = [], model.encode(close)
    for thought in thoughts:
        ids = thought.completion_ids()
        closed = ids[-len(marks) :] == marks
        kept = len(ids) - (len(marks) if closed else 0)
        if percent == 100 and closed:
            ends.append(model.append(thought, answer_open, account=account))
            continue
        root = thought.lineage()[0]
        text = [*ids[: kept * percent // 100], *marks, *model.encode(answer_open)]
        ends.append(model.append(root, text, account=account))
    sampling = SamplingParams(max_tokens=tokens)
    rows = model.extend(ends, sampling, account=account) if ends else []
    outputs = []
    for end, [answer] in zip(ends, rows, strict=True):
        logits_V = segment(end).next_logits_V
        assert logits_V is not None  # sampling the answer needed them
        logprobs_V = logits_V.double().log_softmax(-1)
        probabilities_V = logprobs_V.exp()
        entropy = -float((probabilities_V * logprobs_V.clamp(min=-1e4)).sum())
        first, second = probabilities_V.topk(2).values.tolist()
        outputs.append(Output(entropy, first - second, 1 / first, answer.text))
    return outputs
