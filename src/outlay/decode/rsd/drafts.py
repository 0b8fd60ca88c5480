"""What proposes tokens: a smaller network, or n-gram counts.

Shapes: B sequences, R rows fed, N nodes, V vocabulary of the target.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import torch

from outlay.decode.rsd.attention import TreeCache, check_network
from outlay.decode.rsd.ngram import Counts, NGram
from outlay.decode.rsd.trees import Tree
from outlay.errors import InputError, ModelError

if TYPE_CHECKING:
    from outlay.models.local import LocalModel

_truncated: weakref.WeakKeyDictionary[Any, LocalModel] = weakref.WeakKeyDictionary()


class Drafter(Protocol):
    """Proposes what follows B sequences; the engine drives it."""

    @property
    def rows(self) -> int:
        """Real rows fed so far."""
        ...

    @property
    def bytes(self) -> int:
        """Of keys and values."""
        ...

    def open(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read B prompts."""
        ...

    def append(self, tokens: Sequence[Sequence[int]]) -> None:
        """Further committed tokens that no tree held."""
        ...

    def roots(self) -> torch.Tensor:
        """Logits_BV after everything committed."""
        ...

    def expand(self, trees: Sequence[Tree], nodes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Logits_NV after some nodes of each tree, whose parents were expanded before."""
        ...

    def commit(
        self, trees: Sequence[Tree], paths: Sequence[Sequence[int]], last: Sequence[int]
    ) -> None:
        """The nodes `paths[b]` and then the token `last[b]` are part of sequence b."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these sequences."""
        ...


class NetworkDraft:
    """A network with its own tree cache.

    Args:
        network: a transformers causal LM.
        vocabulary: V; logits beyond are cut, missing ones cannot be drawn.
        device: that the logits are wanted on.
    """

    def __init__(self, network: Any, vocabulary: int, device: torch.device) -> None:
        self._network, self._vocabulary, self._device = network, vocabulary, device
        self._cache = TreeCache(network, 0)
        self._missing: list[list[int]] = []  # committed tokens that were never fed
        self._columns: list[dict[int, int]] = []  # pending column of every fed node
        self._chains: list[int] = []  # pending columns of formerly missing tokens
        self.rows = 0  # real rows fed so far

    @property
    def bytes(self) -> int:
        """Of keys and values."""
        return self._cache.bytes

    @torch.inference_mode()
    def open(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read all but the last token of each prompt, which waits to be fed."""
        self._cache = TreeCache(self._network, len(prompts))
        self._cache.read([prompt[:-1] for prompt in prompts])
        self.rows += sum(len(prompt) - 1 for prompt in prompts)
        self._missing = [[prompt[-1]] for prompt in prompts]
        self._rest()

    def _rest(self) -> None:
        self._columns = [{} for _ in self._missing]
        self._chains = [0] * len(self._missing)

    def append(self, tokens: Sequence[Sequence[int]]) -> None:
        """Further committed tokens that no tree held."""
        for waiting, more in zip(self._missing, tokens, strict=True):
            waiting += more

    @torch.inference_mode()
    def roots(self) -> torch.Tensor:
        """Feed what is missing; logits_BV after it."""
        width = max(map(len, self._missing))
        ids_BR = torch.zeros((len(self._missing), width), dtype=torch.long)
        parents = []
        for b, tokens in enumerate(self._missing):
            ids_BR[b, : len(tokens)] = torch.tensor(tokens)
            parents.append([r - 1 if r < len(tokens) else -1 for r in range(width)])
        logits_BRV = self._cache.feed(ids_BR, parents)
        self._chains = [len(tokens) for tokens in self._missing]
        self._columns = [{0: len(tokens) - 1} for tokens in self._missing]
        self.rows += sum(self._chains)
        last_B = torch.tensor(self._chains, device=logits_BRV.device) - 1
        every_B = torch.arange(len(last_B), device=logits_BRV.device)
        return self._fitted(logits_BRV[every_B, last_B])

    @torch.inference_mode()
    def expand(self, trees: Sequence[Tree], nodes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Feed nodes whose parents were fed before; what follows each."""
        width, base = max(map(len, nodes)), self._cache.pending
        ids_BR = torch.zeros((len(nodes), width), dtype=torch.long)
        parents = []
        for b, (tree, chosen) in enumerate(zip(trees, nodes, strict=True)):
            above = [-1] * width
            for r, node in enumerate(chosen):
                ids_BR[b, r] = tree.tokens[node]
                above[r] = self._columns[b][tree.parents[node]]
                self._columns[b][node] = base + r
            parents.append(above)
        logits_BRV = self._cache.feed(ids_BR, parents)
        self.rows += sum(map(len, nodes))
        return [self._fitted(logits_BRV[b, : len(chosen)]) for b, chosen in enumerate(nodes)]

    def _fitted(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """On the target's vocabulary: padding is cut, what the draft lacks is impossible."""
        check_finite(logits_NV, "the draft")
        logits_NV = logits_NV[:, : self._vocabulary].to(self._device)
        short = self._vocabulary - logits_NV.shape[1]
        return torch.nn.functional.pad(logits_NV, (0, short), value=-torch.inf)

    @torch.inference_mode()
    def commit(
        self, trees: Sequence[Tree], paths: Sequence[Sequence[int]], last: Sequence[int]
    ) -> None:
        """Keep the accepted nodes' rows; accepted leaves were never fed and wait."""
        kept = []
        for b, (tree, path) in enumerate(zip(trees, paths, strict=True)):
            fed = [node for node in path if node in self._columns[b]]
            kept.append([*range(self._chains[b]), *(self._columns[b][node] for node in fed)])
            waiting = [tree.tokens[node] for node in path if node not in self._columns[b]]
            if self._chains[b]:
                self._missing[b] = []
            self._missing[b] += [*waiting, last[b]]
        if self._cache.pending:
            self._cache.commit(kept)
        self._rest()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these sequences."""
        self._cache.keep(rows)
        self._missing = [self._missing[row] for row in rows]
        self._rest()


class CountingDraft:
    """n-gram counts, one table a sequence.

    Args:
        knobs: order and smoothing.
        vocabulary: V.
        device: that the logits are wanted on.
    """

    def __init__(self, knobs: NGram, vocabulary: int, device: torch.device) -> None:
        self._knobs, self._vocabulary, self._device = knobs, vocabulary, device
        self._counts: list[Counts] = []
        self.rows = 0
        self.bytes = 0

    def open(self, prompts: Sequence[Sequence[int]]) -> None:
        """Count B prompts."""
        self._counts = [Counts(self._knobs, self._vocabulary) for _ in prompts]
        self.append(prompts)

    def append(self, tokens: Sequence[Sequence[int]]) -> None:
        """Count further tokens."""
        for counts, more in zip(self._counts, tokens, strict=True):
            counts.extend(more)

    def _logits(self, counts: Counts, ahead: Sequence[int]) -> torch.Tensor:
        law_V = torch.from_numpy(counts.law(ahead)).to(self._device)
        return law_V.log()

    def roots(self) -> torch.Tensor:
        """What follows each sequence."""
        return torch.stack([self._logits(counts, ()) for counts in self._counts])

    def expand(self, trees: Sequence[Tree], nodes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """What follows some nodes."""
        return [
            torch.stack([self._logits(counts, tree.words(node)) for node in chosen])
            if chosen
            else torch.empty((0, self._vocabulary), device=self._device)
            for counts, tree, chosen in zip(self._counts, trees, nodes, strict=True)
        ]

    def commit(
        self, trees: Sequence[Tree], paths: Sequence[Sequence[int]], last: Sequence[int]
    ) -> None:
        """Count what was accepted."""
        for counts, tree, path, token in zip(self._counts, trees, paths, last, strict=True):
            counts.extend([*(tree.tokens[node] for node in path), token])

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these sequences."""
        self._counts = [self._counts[row] for row in rows]


def check_finite(logits: torch.Tensor, whose: str) -> None:
    """Raise `ModelError` for logits that say nothing."""
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            f"{whose} gave logits that are not finite; load it in fp32 (mode='exact'), or use "
            "another model"
        )


def resolve(draft: LocalModel | NGram | str | None, target: LocalModel) -> LocalModel | NGram:
    """The draft that a knob names; see `RSD.draft`.

    Raises:
        InputError: for a draft of another tokenizer, or None where the package has none.
        CapabilityError: for a network that cannot take a tree mask.
    """
    if draft is None:
        from outlay.testbeds.drafts import draft_for

        found: LocalModel | NGram = draft_for(target)
    elif draft == "ngram":
        found = NGram()
    elif draft == "truncated":
        found = _cut(target)
    elif isinstance(draft, str):
        found = _named(draft, target.mode, str(target.device))
    else:
        found = draft
    if not isinstance(found, NGram):
        if found.tokenizer.get_vocab() != target.tokenizer.get_vocab():
            raise InputError(
                f"draft={found.name} and {target.name} have different tokenizers, so their tokens "
                "mean different things; give draft= a model with the target's tokenizer, or 'ngram'"
            )
        check_network(found.model, f"draft={found.name}")
    return found


@cache
def _named(spec: str, mode: str, device: str) -> LocalModel:
    from outlay.models import load
    from outlay.models.local import LocalModel

    found = load(spec, mode=mode, device=device)
    if not isinstance(found, LocalModel):
        raise InputError(f"draft={spec!r} is served elsewhere; a draft must be a local model")
    return found


def _cut(target: LocalModel) -> LocalModel:
    """A third of the target's layers, not distilled: a bad draft, built once."""
    if target not in _truncated:
        from outlay.models.local import LocalModel
        from outlay.models.truncated import spread, truncated

        layers = int(target.model.config.get_text_config().num_hidden_layers)
        network = truncated(target.model, spread(layers, max(1, layers // 3)))
        if (rotary := getattr(target.model.base_model, "rotary_emb", None)) is not None:
            network.base_model.rotary_emb = rotary  # a copy's would be rounded in half precision
        _truncated[target] = LocalModel(
            network, target.tokenizer, f"{target.name}/truncated", mode=target.mode
        )
    return _truncated[target]


def drafter(draft: LocalModel | NGram, vocabulary: int, device: torch.device) -> Drafter:
    """What drives a draft for targets of `vocabulary` tokens."""
    if isinstance(draft, NGram):
        return CountingDraft(draft, vocabulary, device)
    return NetworkDraft(draft.model, vocabulary, device)
