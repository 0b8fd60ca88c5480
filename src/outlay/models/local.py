"""Local models: any transformers causal LM, with branches that share their prefix's KV.

Its own decoding loop, not `generate`: phases, forks and forced text need one, and a loop without
per-step bookkeeping is no slower. Greedy output is `generate`'s, token for token, in "exact" mode
(fp32). Filters are transformers' own warpers. KV policy "segments" of the test-time foundation
sheet: a radix tree whose branches own the keys and values of their own tokens (see `kv`).

Shapes: B rows, T time, C hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from outlay.budget import Budget
from outlay.cost import ModelShape
from outlay.errors import CapabilityError, InputError, ModelError, OutlayError
from outlay.models import decoding, scoring
from outlay.models import trail as trails
from outlay.models.base import (
    Account,
    Branch,
    Capabilities,
    Chunk,
    Float32Array,
    Generation,
    Hold,
    Message,
    Prompt,
    SamplingParams,
    TokenLosses,
    Trail,
    elapsed,
)
from outlay.models.kv import Segment, columns, gather, probe_layout, segment

Mode = Literal["exact", "fast"]

_GREEDY = SamplingParams()
_ids = itertools.count()


def choose_device(device: str | None = None) -> torch.device:
    """CUDA, MPS or CPU, the first that is there; or `device`."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@dataclass(eq=False)
class LocalModel:
    """A transformers causal LM behind the `Model` and `Scorer` protocols.

    Args:
        model: the network, in eval mode.
        tokenizer: its tokenizer; a fast one, since scoring needs character offsets.
        name: shown in reports.
        max_batch_tokens: at most this many cached tokens in one decoding batch; larger requests
            run in several batches, with the same results.
        max_score_tokens: padded tokens per scoring batch.

    Example:
        >>> from outlay.models import embedded
        >>> model = embedded.load()
        >>> model.generate("The capital of France is", Budget(tokens=2)).text
        ' Paris.'
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    mode: Mode = "exact"
    max_batch_tokens: int = 32_768
    max_score_tokens: int = 4096

    def __post_init__(self) -> None:
        config = self.model.config.get_text_config()
        self.device: torch.device = self.model.device
        self.context_length = int(getattr(config, "max_position_embeddings", 0) or 2**20)
        self.vocabulary = int(config.vocab_size)
        self.shape: ModelShape | None
        try:
            self.shape = ModelShape.from_config(self.model.config)
        except OutlayError:  # no closed form for this architecture: its FLOPs are booked as 0
            self.shape = None
        self._layers = trails.decoder_layers(self.model.base_model, config.num_hidden_layers)
        self.capabilities = Capabilities(
            hidden_states=self._layers is not None,
            fork_kv=True,
            logprobs=True,
            prompt_logprobs=True,
            seed=True,
            stop=True,
            token_prompts=True,
            n=True,
            append=True,
            min_tokens=True,
        )
        self.computed_tokens = 0  # real token positions fed to the network so far
        self._lm_head = self.model.get_output_embeddings()
        self.eos_ids = self._find_eos()
        self._split = self._can_split()
        with torch.inference_mode():
            body = self.model.base_model if self._split else self.model
            self._layout = probe_layout(body, self.device, self.name)
        self._row_bytes = sum(
            (each.key_heads * each.key_dim + each.value_heads * each.value_dim)
            * each.dtype.itemsize
            for each in self._layout
        )
        taken = inspect.signature(body.forward).parameters
        self._takes_positions = "position_ids" in taken  # ALiBi models count the mask instead

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        mode: Mode = "exact",
        device: str | None = None,
        name: str | None = None,
    ) -> LocalModel:
        """Load a model folder or hub id.

        Args:
            path: a folder with safetensors and a tokenizer, or an id known to transformers.
            mode: "exact" is fp32; "fast" is the cheapest form that keeps the model's quality on
                this device (bf16 on CUDA and MPS, weight-only int8 on CPU).
            device: "cpu", "cuda", "mps"; None chooses.
            name: shown in reports; defaults to the path's last part.

        Raises:
            ModelError: if it cannot be loaded, is not a causal LM, or has no fast tokenizer.
        """
        from transformers.utils import logging as hf_logging

        if mode not in ("exact", "fast"):
            raise InputError(f"mode={mode!r}; choose exact or fast")
        target = choose_device(device)
        low = mode == "fast" and target.type != "cpu"
        bars = hf_logging.is_progress_bar_enabled()
        hf_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.bfloat16 if low else torch.float32, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ModelError(
                f"cannot load {str(path)!r} as a causal language model ({first}); give a folder "
                "with config.json, safetensors and a tokenizer, or run 'outlay models list'"
            ) from error
        finally:
            if bars:
                hf_logging.enable_progress_bar()
        if not tokenizer.is_fast:
            raise ModelError(f"{path} has no fast tokenizer, which scoring needs for offsets")
        model = model.to(target).eval()
        model.requires_grad_(False)
        if mode == "fast" and target.type == "cpu":
            from outlay.models.quantise import quantise_linears

            quantise_linears(model)
        return cls(model, tokenizer, name or Path(str(path)).name, mode=mode)

    # -- text and tokens ------------------------------------------------------------------------

    def count(self, text: str) -> int:
        """Tokens of `text`, without added special tokens."""
        return len(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without added special tokens."""
        return cast(
            list[int], self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=False))

    @property
    def takes_chat(self) -> bool:
        """True if the tokenizer brings a chat template."""
        return bool(self.tokenizer.chat_template)

    def render(self, messages: Sequence[Message], assistant_prefix: str = "") -> str:
        """A chat as this model's template writes it, open for the assistant's turn.

        Raises:
            CapabilityError: if the model has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise CapabilityError(
                f"{self.name} has no chat template; pass the whole prompt as one string"
            )
        text = self.tokenizer.apply_chat_template(
            [{**m} for m in messages], tokenize=False, add_generation_prompt=True
        )
        return cast(str, text) + assistant_prefix

    def prompt_ids(self, prompt: Prompt, assistant_prefix: str = "") -> list[int]:
        """Token ids of any prompt.

        Raises:
            InputError: if it is empty, longer than the window, or holds ids outside the vocabulary.
        """
        if isinstance(prompt, str):
            ids = list(self.tokenizer(prompt + assistant_prefix, verbose=False)["input_ids"])
        elif prompt and isinstance(prompt[0], dict):
            # The template writes its own special tokens: adding them again doubles the BOS.
            ids = self.encode(self.render(cast(Sequence[Message], prompt), assistant_prefix))
        else:
            ids = [int(token) for token in cast(Sequence[int], prompt)]
            ids += self.encode(assistant_prefix) if assistant_prefix else []
        if not ids:
            raise InputError("the prompt is empty; give at least one token")
        self._check_ids(ids)
        if len(ids) >= self.context_length:
            raise InputError(
                f"the prompt has {len(ids)} tokens, the window of {self.name} is "
                f"{self.context_length}; shorten it, for instance with 'outlay compress'"
            )
        return ids

    # -- the tree -------------------------------------------------------------------------------

    def open(
        self, prompt: Prompt, assistant_prefix: str = "", *, account: Account | None = None
    ) -> Branch:
        """Prefill `prompt` once and return the root of a tree."""
        account = account or Account()
        start = time.perf_counter()
        ids = self.prompt_ids(prompt, assistant_prefix)
        flops = self.flops(len(ids), logits_rows=1)
        hold = account.hold([], prompt=len(ids), flops_fixed=flops)
        with _given_back(account, hold):
            root = Branch(_name(), None, tuple(ids), "", "open", handle=Segment())
            self.materialise([root])
        account.settle(hold, 0, flops=flops)
        account.ledger.record(
            account.stage,
            account.role,
            prompt_new=len(ids),
            branch=root.id,
            method=account.method,
            seconds=elapsed(start),
            flops=flops,
        )
        return root

    def append(
        self,
        branch: Branch,
        tokens: str | Sequence[int],
        *,
        account: Account | None = None,
        trail: Trail | None = None,
    ) -> Branch:
        """A child with forced tokens; they are computed when something is built on them.

        With `trail`, or where `branch` keeps one, the means of their hidden states are kept.
        """
        account = account or Account()
        self._check(branch, finished_ok=True)
        ids = self.encode(tokens) if isinstance(tokens, str) else [int(t) for t in tokens]
        if not ids:
            raise InputError("nothing to append: the forced text has no tokens")
        self._check_ids(ids)
        self._fits(branch, len(ids), "appended")
        before = trails.walk_of(branch)
        walk = self.walk(branch, trail or (None if before is None else before.trail))
        hold = account.hold([], forced=len(ids))
        text = self.tail_text(branch, ids)
        state = Segment(walk=walk)
        child = Branch(
            _name(), branch, tuple(ids), text, "forced", depth=branch.depth + 1, handle=state
        )
        account.settle(hold, 0)
        account.ledger.record(
            account.stage, account.role, forced=len(ids), branch=child.id, method=account.method
        )
        return child

    def extend(
        self,
        branches: Sequence[Branch],
        sampling: SamplingParams | Sequence[SamplingParams] = _GREEDY,
        n: int = 1,
        *,
        account: Account | None = None,
        trail: Trail | None = None,
    ) -> list[list[Branch]]:
        """Sample n children of every branch; result [branch][child].

        With `trail`, the children keep the means of their hidden states, for `hidden`.

        Raises:
            BudgetError: if the account's budget has nothing left.
            CapabilityError: for a trail of a model whose decoder layers are not found.
            InputError: for a finished or released branch, n < 1, or a trail that cannot be kept.
        """
        run = decoding.Run(self, branches, sampling, n, account or Account(), trail=trail)
        for _ in run:
            pass
        return run.children

    def hidden(
        self, branches: Sequence[Branch], *, account: Account | None = None
    ) -> list[Float32Array]:
        """Means of the hidden states along each branch's trail, (N, L, C) for N segments, L layers.

        Tokens that are still pending are computed first, all branches in one batch; what is built
        on the branches later does not compute them again.

        Raises:
            InputError: for a branch that keeps no trail, or was released.
        """
        account = account or Account()
        start = time.perf_counter()
        for branch in branches:
            self._check(branch, finished_ok=True)
            trails.need(branch)
        hold = account.hold([], flops_fixed=self.pending_flops(branches))
        with _given_back(account, hold):
            flops = self.materialise(branches)
        account.settle(hold, 0, flops=flops)
        if flops:
            account.ledger.record(
                account.stage,
                account.role,
                branch=branches[0].id,
                method=account.method,
                seconds=elapsed(start),
                flops=flops,
            )
        return [trails.means(branch) for branch in branches]

    def score(
        self,
        branch: Branch,
        continuations: Sequence[str | Sequence[int]],
        *,
        account: Account | None = None,
    ) -> list[tuple[float, ...]]:
        """Log-probability of every token of each continuation, in one batched pass.

        Raises:
            InputError: for a continuation without tokens.
        """
        account = account or Account()
        self._check(branch)
        start = time.perf_counter()
        rows = [
            self.encode(c) if isinstance(c, str) else [int(t) for t in c] for c in continuations
        ]
        if any(not row for row in rows) or not rows:
            raise InputError("every continuation to score needs at least one token")
        for row in rows:
            self._check_ids(row)
        width = max(len(row) for row in rows)
        self._fits(branch, width, "scored")
        total = sum(map(len, rows))
        path = branch.lineage()
        past = sum(len(b.token_ids) for b in path)
        flops = self.flops(width - 1, past, batch=len(rows))
        fixed = self.pending_flops([branch]) + flops
        hold = account.hold([], prompt=total, flops_fixed=fixed)
        with _given_back(account, hold):
            flops += self.materialise([branch])
            logits_V = segment(branch).next_logits_V
            assert logits_V is not None
            first_V = logits_V.float().log_softmax(-1)
            results: list[list[float]] = [[float(first_V[row[0]])] for row in rows]
            if width > 1:
                ids_BT = torch.zeros((len(rows), width), dtype=torch.long)
                for i, row in enumerate(rows):
                    ids_BT[i, : len(row)] = torch.tensor(row)
                logits_BTV = self._forward(ids_BT[:, :-1].to(self.device), [path] * len(rows))
                logprobs_BTV = logits_BTV.float().log_softmax(-1)
                for i, row in enumerate(rows):
                    results[i] += [
                        float(logprobs_BTV[i, t - 1, row[t]]) for t in range(1, len(row))
                    ]
                self.computed_tokens += total - len(rows)
        account.settle(hold, 0, flops=flops)
        account.ledger.record(
            account.stage,
            account.role,
            prompt_new=total,
            branch=branch.id,
            method=account.method,
            seconds=elapsed(start),
            flops=flops,
        )
        return [tuple(row) for row in results]

    def release(self, branch: Branch) -> None:
        """Drop the branch's KV; it and its descendants cannot be extended afterwards."""
        segment(branch).release()

    # -- one call -------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> Generation:
        """Continue one prompt; at most `sampling.max_tokens` and `budget` tokens."""
        *_, last = self.stream(prompt, budget, sampling, account=account)
        assert last.generation is not None
        return last.generation

    def stream(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> Iterator[Chunk]:
        """As `generate`, piece by piece; the last chunk carries the `Generation`."""
        account = account or Account.open(budget, method="plain")
        ceiling = None
        if budget is not None and not budget.shapes_prompt:
            ceiling = budget.tokens
        began = time.perf_counter()
        root = self.open(prompt, account=account)
        run = decoding.Run(self, [root], sampling, 1, account, ceiling=ceiling)
        pieces = run.texts()
        try:
            for text in pieces:
                yield Chunk(text)
        finally:
            pieces.close()  # a stream that is abandoned settles now, not when it is collected
        (child,) = run.children[0]
        account.ledger.deliver(child.ids())
        yield Chunk(
            "",
            Generation(
                child.text,
                child.token_ids,
                child.finish,
                account.ledger,
                child.logprobs,
                run.gauges(began, self._row_bytes),
            ),
        )

    # -- scoring --------------------------------------------------------------------------------

    @torch.inference_mode()
    def losses(
        self,
        texts: Sequence[str],
        *,
        keep_from: Sequence[int] | None = None,
        account: Account | None = None,
    ) -> list[TokenLosses]:
        """Per-token losses of every text, batched by length; see `Scorer.losses`."""
        account = account or Account(role="scorer")
        start = time.perf_counter()
        starts = [0] * len(texts) if keep_from is None else list(keep_from)
        if len(starts) != len(texts):
            raise InputError(f"keep_from has {len(starts)} entries for {len(texts)} texts")
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        rows: list[list[int]] = encoded["input_ids"]
        offsets = [np.asarray(o, dtype=np.int64).reshape(-1, 2) for o in encoded["offset_mapping"]]
        for index, row in enumerate(rows):
            if len(row) > self.context_length:
                raise InputError(
                    f"text {index} has {len(row)} tokens, the window of {self.name} is "
                    f"{self.context_length}; split it or cut its left"
                )
        firsts = [
            int(np.searchsorted(offset[:, 1], first, side="right"))
            for offset, first in zip(offsets, starts, strict=True)
        ]
        lengths = [len(row) for row in rows]
        total = sum(lengths)
        flops = sum(
            self.flops(t, logits_rows=max(0, t - max(1, f)))
            for t, f in zip(lengths, firsts, strict=True)
            if t
        )
        hold = account.hold([], prompt=total, flops_fixed=flops)
        nll: list[Any] = [np.empty(0)] * len(rows)
        filled = [i for i, t in enumerate(lengths) if t]
        with _given_back(account, hold):
            for group in scoring.batches(
                [lengths[i] for i in filled], max_tokens=self.max_score_tokens
            ):
                chosen = [filled[g] for g in group]
                scored = scoring.batch_losses(
                    self._body,
                    self._head,
                    [rows[i] for i in chosen],
                    [firsts[i] for i in chosen],
                    pad=0,
                    device=self.device,
                )
                for i, values in zip(chosen, scored, strict=True):
                    nll[i] = values
                self.computed_tokens += sum(lengths[i] for i in chosen)
        account.settle(hold, 0, flops=flops)
        account.ledger.record(
            account.stage,
            account.role,
            prompt_new=total,
            method=account.method,
            seconds=elapsed(start),
            flops=flops,
        )
        return [
            TokenLosses(np.asarray(row, dtype=np.int64), offset[:, 0], offset[:, 1], values)
            for row, offset, values in zip(rows, offsets, nll, strict=True)
        ]

    # -- inside ---------------------------------------------------------------------------------

    def tail_text(self, branch: Branch, ids: Sequence[int]) -> str:
        """Text that `ids` add after `branch`: decoders may treat a first token specially."""
        tail: list[int] = []
        for ancestor in reversed(branch.lineage()):
            tail = list(ancestor.token_ids[-4:]) + tail
            if len(tail) >= 4:
                break
        tail = tail[-4:]
        before = self.decode(tail)
        return self.decode([*tail, *ids])[len(before) :]

    def flops(
        self, new: int, past: int = 0, *, logits_rows: int | None = None, batch: int = 1
    ) -> float:
        """FLOPs of a forward pass; 0 where the architecture has no closed form."""
        if self.shape is None:
            return 0.0
        return float(self.shape.flops(new, past, logits_rows=logits_rows, batch=batch))

    def pending_flops(self, branches: Sequence[Branch]) -> float:
        """At most what `materialise` will spend: every pending token as if it came last."""
        pending = {b.id: _pending(b) for leaf in branches for b in leaf.lineage()}
        stale = sum(_stale(leaf) for leaf in branches)
        return (sum(pending.values()) + stale) * self.flops(1, self._longest(branches))

    def _check_ids(self, ids: Sequence[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self.vocabulary), None)
        if wrong is not None:
            raise InputError(f"token id {wrong} is outside the vocabulary of {self.vocabulary}")

    def _fits(self, branch: Branch, more: int, what: str) -> None:
        used = sum(len(b.token_ids) for b in branch.lineage())
        if used + more > self.context_length:
            raise InputError(
                f"{more} {what} tokens after {used} exceed the window of {self.name}, "
                f"{self.context_length}; shorten the prompt or the text"
            )

    def _check(self, branch: Branch, *, finished_ok: bool = False) -> None:
        if any(segment(b).released for b in branch.lineage()):
            raise InputError(f"branch {branch.id} was released; keep it until its last use")
        if branch.finish == "eos" and not finished_ok:
            raise InputError(f"branch {branch.id} ended with end-of-text; it cannot be extended")

    @torch.inference_mode()
    def materialise(self, branches: Sequence[Branch]) -> float:
        """Compute the KV of all pending tokens on the branches' paths, each token once.

        Returns:
            FLOPs spent.
        """
        leaves = list({b.id: b for b in branches}.values())
        paths = {leaf.id: leaf.lineage() for leaf in leaves}
        uses: dict[str, int] = {}
        for path in paths.values():
            for branch in path:
                if _pending(branch):
                    uses[branch.id] = uses.get(branch.id, 0) + 1
        shared = {b.id: b for path in paths.values() for b in path if uses.get(b.id, 0) > 1}
        spent = 0.0
        if shared:  # first what several paths need, so that nothing is computed twice
            spent += self.materialise(_deepest(list(shared.values())))
        todo = [leaf for leaf in leaves if _pending(leaf) or _stale(leaf)]
        room = max((len(p) for p in map(_pending_ids, todo)), default=0)
        step = max(1, self.max_batch_tokens // (room + self._longest(todo) or 1))
        for at in range(0, len(todo), step):
            spent += self._fill(todo[at : at + step])
        return spent

    def _longest(self, branches: Sequence[Branch]) -> int:
        return max((sum(len(b.token_ids) for b in x.lineage()) for x in branches), default=0)

    def _fill(self, leaves: Sequence[Branch]) -> float:
        paths = [leaf.lineage() for leaf in leaves]
        fresh = [_pending_ids(leaf) for leaf in leaves]
        width = max(map(len, fresh))
        ids_BT = torch.zeros((len(leaves), width), dtype=torch.long)
        for i, row in enumerate(fresh):
            ids_BT[i, : len(row)] = torch.tensor(row)
        cache, past = self.gather(paths, width)
        widest = max(past)
        self.computed_tokens += sum(map(len, fresh))
        missing = [[_pending(branch) for branch in path] for path in paths]
        with self._absorbing(paths, missing, width):
            hidden_BTC = self._through(ids_BT.to(self.device), cache, past)
        # What comes next is kept for every branch that ends here, not for the leaves alone: the
        # branches on the way may be extended later, and must not be fed again for it.
        ends = [_ends(path, fed) for path, fed in zip(paths, missing, strict=True)]
        rows = [i for i, each in enumerate(ends) for _ in each]
        places = [place for each in ends for _, place in each]
        logits_NV = self._head(hidden_BTC[rows, places])
        for logits_V, (branch, _) in zip(logits_NV, itertools.chain(*ends), strict=True):
            segment(branch).next_logits_V = logits_V.clone()
        for i, (path, each) in enumerate(zip(paths, missing, strict=True)):
            at = widest
            for branch, fed in zip(path, each, strict=True):
                if fed:
                    segment(branch).append(*columns(cache, i, at, at + fed))
                    at += fed
        return sum(
            self.flops(len(f), p, logits_rows=len(e))
            for f, p, e in zip(fresh, past, ends, strict=True)
        )

    @contextlib.contextmanager
    def _absorbing(
        self, paths: Sequence[Sequence[Branch]], missing: Sequence[Sequence[int]], width: int
    ) -> Iterator[None]:
        """The pass inside is taken in by the trails of the paths' branches, where there are any."""
        rows = [trails.pieces(*each) for each in zip(paths, missing, strict=True)]
        chosen = tuple(sorted({n for row in rows for piece in row for n in piece.walk.layers}))
        if not chosen:
            yield
            return
        with self.watch(chosen) as watch:
            watch.weights_BPT = trails.weights(rows, width, self.device)
            yield
            for path, row, sums_PLC in zip(paths, rows, watch.take(), strict=True):
                trails.absorb(path, row, sums_PLC, chosen)

    def watch(self, layers: tuple[int, ...]) -> contextlib.AbstractContextManager[trails.Watch]:
        """Hooks on these decoder layers, in place inside the context."""
        assert self._layers is not None
        return trails.Watch(self.model.base_model, self._layers, layers).on()

    def walk(self, parent: Branch, trail: Trail | None) -> trails.Walk | None:
        """The walk of a new child of `parent`; None without a trail.

        Raises:
            CapabilityError: if the decoder layers are not found.
            InputError: for layers that the model does not have, or a parent with another trail.
        """
        if trail is None:
            return None
        self.capabilities.require("a trail", "hidden_states", model=self.name)
        assert self._layers is not None
        layers = trails.chosen_layers(trail, len(self._layers), self.name)
        return trails.follow(parent, trail, layers)

    def gather(self, paths: Sequence[Sequence[Branch]], room: int) -> tuple[Any, list[int]]:
        """A batch cache of the paths' KV with `room` columns to grow; see `kv.gather`."""
        return gather(paths, room, layout=self._layout, device=self.device)

    def logits(
        self,
        ids_BT: torch.Tensor,
        cache: Any,
        past: Sequence[int],
        last_B: torch.Tensor,
    ) -> torch.Tensor:
        """Feed ids behind a gathered cache; logits_BV after each row's position `last_B`."""
        hidden_BTC = self._through(ids_BT, cache, past)
        rows_B = torch.arange(len(last_B), device=self.device)
        return self._head(hidden_BTC[rows_B, last_B])

    def _through(self, ids_BT: torch.Tensor, cache: Any, past: Sequence[int]) -> torch.Tensor:
        """Hidden states behind a gathered cache whose rows hold `past[b]` real columns."""
        filled, width = cache.get_seq_length(), ids_BT.shape[1]
        position_BT = torch.tensor(list(past), device=self.device)[:, None] + torch.arange(
            width, device=self.device
        )
        mask_BT = None
        if min(past) < filled:
            mask_BT = torch.ones((len(past), filled + width), dtype=torch.long, device=self.device)
            for row, real in enumerate(past):
                mask_BT[row, : filled - real] = 0
        where = {"position_ids": position_BT} if self._takes_positions else {}
        return self._body(ids_BT, cache=cache, attention_mask=mask_BT, **where)

    def _forward(self, ids_BT: torch.Tensor, paths: Sequence[Sequence[Branch]]) -> torch.Tensor:
        with torch.inference_mode():
            cache, past = self.gather(paths, ids_BT.shape[1])
            return self._head(self._through(ids_BT, cache, past))

    def _body(self, ids_BT: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """What `_head` maps to logits: hidden states, or the logits themselves if not separable."""
        if not self._split:
            return cast(
                torch.Tensor, self.model(ids_BT, use_cache="cache" in kwargs, **kwargs).logits
            )
        out = self.model.base_model(ids_BT, use_cache="cache" in kwargs, **kwargs)
        return cast(torch.Tensor, out.last_hidden_state)

    def _head(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self._lm_head(hidden_NC)) if self._split else hidden_NC

    @torch.inference_mode()
    def _can_split(self) -> bool:
        """True if logits are exactly head(base(x)): no scaling or soft-capping in between."""
        soft = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        if self._lm_head is None or soft:  # capping hardly shows on the probe's small logits
            return False
        ids_BT = torch.tensor([[0, 1, 2]], device=self.device) % self.vocabulary
        whole = self.model(ids_BT, use_cache=False).logits
        parts = self._lm_head(self.model.base_model(ids_BT, use_cache=False).last_hidden_state)
        return bool(torch.allclose(whole, parts, rtol=1e-5, atol=1e-5))

    def _find_eos(self) -> frozenset[int]:
        found: set[int] = set()
        for source in (self.model.generation_config, self.model.config, self.tokenizer):
            eos = getattr(source, "eos_token_id", None)
            found.update([eos] if isinstance(eos, int) else eos or [])
        return frozenset(found)


@contextlib.contextmanager
def _given_back(account: Account, hold: Hold) -> Iterator[None]:
    """A call that fails is in no ledger, so the meter must not count it either."""
    try:
        yield
    except BaseException:
        account.settle(hold, -hold.fixed)
        raise


def _name() -> str:
    return f"b{next(_ids)}"


def _pending(branch: Branch) -> int:
    return len(branch.token_ids) - segment(branch).length


def _stale(branch: Branch) -> bool:
    return segment(branch).next_logits_V is None


def _pending_ids(leaf: Branch) -> list[int]:
    """The tokens to feed so that the leaf's KV is complete and its next logits are known."""
    return [t for b in leaf.lineage() for t in b.token_ids[segment(b).length :]]


def _ends(path: Sequence[Branch], fed: Sequence[int]) -> list[tuple[Branch, int]]:
    """The branches of a path whose last token is fed now, and its place among the fed tokens."""
    found, at = [], 0
    for branch, size in zip(path, fed, strict=True):
        at += size
        if size:
            found.append((branch, at - 1))
    if not fed[-1]:  # an empty leaf: what comes next is what follows the last token of its path
        found.append((path[-1], at - 1))
    return found


def _deepest(branches: list[Branch]) -> list[Branch]:
    """Those of `branches` that are no ancestor of another one."""
    inner = {a.id for b in branches for a in b.lineage()[:-1]}
    return [b for b in branches if b.id not in inner]
