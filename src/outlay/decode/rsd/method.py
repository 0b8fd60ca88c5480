"""RSD: speculative decoding with draft trees whose siblings are drawn without replacement.

"Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
arXiv 2402.14160. A small draft proposes a tree of continuations, the target reads the whole tree in
one pass, and recursive rejection sampling accepts a path of it so that the text is distributed
exactly as the target's own. At temperature 0 it is the target's greedy text, token for token.

Where it differs from the paper: batches of prompts; `budget=` chooses the tree's shape from an
acceptance profile; a tree never reaches past what may still be written or spent; every mode (single
chains and independent siblings, too) runs in the same loop, so that they can be compared.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.budget import Budget
from outlay.cache.base import CacheMethod
from outlay.cache.loop import local
from outlay.decode.rsd.call import Call, RSDResult
from outlay.decode.rsd.ngram import NGram
from outlay.decode.rsd.structure import choose_shape
from outlay.decode.rsd.trees import Mode, Shape
from outlay.errors import InputError
from outlay.models.base import Account, Chunk, Model, Prompt, SamplingParams

_GREEDY = SamplingParams()
PROFILE = (0.30, 0.40, 0.48, 0.51, 0.52, 0.55, 0.57, 0.59)  # results/proofs/rsd.json, rounded


@dataclass(frozen=True)
class RSD:
    """Speculative decoding over trees of draft tokens (paper, sections 3.1 to 3.3).

    A budget counts every sampled token: draft nodes, accepted or not, and one token of the target
    per pass. Temperature, top_p, top_k, seed and stops are the sampling parameters'; the draft's
    law is filtered as the target's is.

    Args:
        mode: "rsd_s" is stochastic beam search, "rsd_c" a constant number of children a level,
            both without replacement; "chain" is single-sequence speculative decoding, "iid_tree"
            draws children with replacement, "greedy_tree" takes the most likely ones.
        branching: children a node, per level; of rsd_c, iid_tree and greedy_tree.
        beam: W, nodes of every level of rsd_s.
        depth: levels of rsd_s and chain.
        draft: a local model with the target's tokenizer, an `NGram`, "ngram", "truncated" (a third
            of the target's layers, not distilled), or a model's spec; None is the draft that the
            package has for the target.
        budget: draft nodes given to the target per pass; where given, it chooses the sizes above
            by `profile`.
        profile: P(one of the first k children is accepted), for k = 1, 2, ...; see
            `outlay.decode.rsd.structure.acceptance_profile`. The default was measured at
            temperature 1 on chats with the embedded model and its draft.

    Raises:
        InputError: for sizes out of range.
    """

    mode: Mode = "rsd_s"
    branching: tuple[int, ...] = (2, 2, 2)
    beam: int = 4
    depth: int = 3
    draft: Any = None
    budget: int | None = None
    profile: tuple[float, ...] = PROFILE

    def __post_init__(self) -> None:
        self.shape()
        known = self.draft is None or isinstance(self.draft, str | NGram)
        if not known and not hasattr(self.draft, "prompt_ids"):
            raise InputError(
                f"draft={type(self.draft).__name__}; give a local model, an NGram, 'ngram', "
                "'truncated', a model's spec, or None"
            )

    def shape(self) -> Shape:
        """The shape of the draft trees."""
        shape = Shape(self.mode, tuple(self.branching), self.beam, self.depth)
        return shape if self.budget is None else choose_shape(shape, self.budget, self.profile)

    def over(self, cache: CacheMethod) -> OverCache:
        """This decoder, with prompts read by a cache method."""
        return OverCache(self, cache)

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> RSDResult:
        """Continue `prompt`; at most `sampling.max_tokens` tokens within `budget`.

        Raises:
            CapabilityError: for a model that is not local or cannot take a tree mask.
            InputError: for a draft of another tokenizer, or a prompt without room for a tree.
            ModelError: for logits that are not finite.
        """
        account = account or Account.open(budget, method="rsd")
        return _results(Call(self.draft, self.shape(), model, [prompt], sampling, [account]))[0]

    def generate_many(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        budget: Budget | None = None,
        sampling: SamplingParams | Sequence[SamplingParams] = _GREEDY,
    ) -> list[RSDResult]:
        """`generate` for every prompt in batches, each with its own ledger and budget."""
        each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else list(sampling)
        if len(each) != len(prompts):
            raise InputError(f"{len(each)} sampling parameters for {len(prompts)} prompts")
        made: list[RSDResult] = []
        at = 0
        while at < len(prompts):
            step = _rows(self, model, prompts[at:], each[at:])
            group = slice(at, at + step)
            accounts = [Account.open(budget, method="rsd") for _ in prompts[group]]
            made += _results(
                Call(self.draft, self.shape(), model, prompts[group], each[group], accounts)
            )
            at += step
        return made

    def stream(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> Iterator[Chunk]:
        """As `generate`, pass by pass; the last chunk carries the result."""
        account = account or Account.open(budget, method="rsd")
        return _stream(Call(self.draft, self.shape(), model, [prompt], sampling, [account]))


@dataclass(frozen=True)
class OverCache:
    """RSD behind a prompt that a cache method read.

    Args:
        decoder: the knobs.
        cache: reads the prompt; the draft reads all of it by itself.
    """

    decoder: RSD
    cache: CacheMethod

    def _call(
        self, model: Model, prompt: Prompt, sampling: SamplingParams, account: Account
    ) -> Call:
        decoder = self.decoder
        shape = decoder.shape()
        return Call(decoder.draft, shape, model, [prompt], sampling, [account], self.cache)

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> RSDResult:
        """As `RSD.generate`."""
        return _results(
            self._call(model, prompt, sampling, account or Account.open(budget, method="rsd"))
        )[0]

    def stream(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> Iterator[Chunk]:
        """As `RSD.stream`."""
        return _stream(
            self._call(model, prompt, sampling, account or Account.open(budget, method="rsd"))
        )


def _rows(
    decoder: RSD, model: Model, prompts: Sequence[Prompt], each: Sequence[SamplingParams]
) -> int:
    """How many of `prompts` run together within the model's limit of cached tokens."""
    network = local(model, "RSD")
    nodes = decoder.shape().nodes + 1
    widest = 0
    for count, (prompt, sampling) in enumerate(zip(prompts, each, strict=True)):
        widest = max(widest, len(network.prompt_ids(prompt)) + sampling.max_tokens + nodes)
        if count and widest * (count + 1) > network.max_batch_tokens:
            return count
    return len(prompts)


def _results(call: Call) -> list[RSDResult]:
    for _ in call.steps():
        pass
    return call.results


def _stream(call: Call) -> Iterator[Chunk]:
    shown = ""
    for _ in call.steps():
        text = call.text_so_far()
        if len(text) > len(shown):
            yield Chunk(text[len(shown) :])
            shown = text
    (result,) = call.results
    yield Chunk(result.text[len(shown) :], result)
