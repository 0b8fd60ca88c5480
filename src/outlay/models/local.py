"""Local models: any transformers causal LM, with branches that share their prefix's KV.

Its own decoding loop, not `generate`: phases, forks and forced text need one, and a loop without
per-step bookkeeping is no slower. Greedy output is `generate`'s, token for token, in "exact" mode
(fp32). Filters are transformers' own warpers. KV policy "segments" of the test-time foundation
sheet: a radix tree whose branches own the keys and values of their own tokens (see `kv`).

Shapes: B rows, T time, C hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from outlay.budget import Budget
from outlay.cost import ModelShape
from outlay.errors import CapabilityError, InputError, ModelError, OutlayError
from outlay.models import decoding, pending, scoring
from outlay.models import trail as trails
from outlay.models.base import (
    Account,
    Branch,
    Capabilities,
    Chunk,
    Float32Array,
    Generation,
    Message,
    Prompt,
    SamplingParams,
    TokenLosses,
    Trail,
    elapsed,
)
from outlay.models.booking import book_pass, given_back
from outlay.models.kv import Segment, branch_name, segment
from outlay.models.network import Network

Mode = Literal["exact", "fast"]

_GREEDY = SamplingParams()


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
        self.eos_ids = self._find_eos()
        self.network = Network(self.model, self.name)

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
        with given_back(account, hold):
            root = Branch(branch_name(), None, tuple(ids), "", "open", handle=Segment())
            self.materialise([root])
        seconds = elapsed(start)
        book_pass(account, hold, seconds=seconds, flops=flops, prompt=len(ids), branch=root.id)
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
            branch_name(), branch, tuple(ids), text, "forced", depth=branch.depth + 1, handle=state
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
        hold = account.hold([], flops_fixed=pending.most_flops(self, branches))
        with given_back(account, hold):
            flops = self.materialise(branches)
        if flops:
            seconds = elapsed(start)
            book_pass(account, hold, seconds=seconds, flops=flops, branch=branches[0].id)
        else:
            account.settle(hold, 0)
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
        fixed = pending.most_flops(self, [branch]) + flops
        hold = account.hold([], prompt=total, flops_fixed=fixed)
        with given_back(account, hold):
            flops += self.materialise([branch])
            logits_V = segment(branch).next_logits_V
            assert logits_V is not None
            first_V = logits_V.float().log_softmax(-1)
            results: list[list[float]] = [[float(first_V[row[0]])] for row in rows]
            if width > 1:
                ids_BT = torch.zeros((len(rows), width), dtype=torch.long)
                for i, row in enumerate(rows):
                    ids_BT[i, : len(row)] = torch.tensor(row)
                ids_BT = ids_BT[:, :-1].to(self.device)
                logits_BTV = self.network.all_logits(ids_BT, [path] * len(rows))
                logprobs_BTV = logits_BTV.float().log_softmax(-1)
                for i, row in enumerate(rows):
                    results[i] += [
                        float(logprobs_BTV[i, t - 1, row[t]]) for t in range(1, len(row))
                    ]
                self.computed_tokens += total - len(rows)
        seconds = elapsed(start)
        book_pass(account, hold, seconds=seconds, flops=flops, prompt=total, branch=branch.id)
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
                run.gauges(began, self.network.row_bytes),
            ),
        )

    # -- scoring --------------------------------------------------------------------------------

    def losses(
        self,
        texts: Sequence[str],
        *,
        keep_from: Sequence[int] | None = None,
        account: Account | None = None,
    ) -> list[TokenLosses]:
        """Per-token losses of every text, batched by length; see `Scorer.losses`."""
        return scoring.losses(self, texts, keep_from, account or Account(role="scorer"))

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

    def materialise(self, branches: Sequence[Branch]) -> float:
        """Compute the KV of all pending tokens on the branches' paths, each token once.

        Returns:
            FLOPs spent.
        """
        return pending.materialise(self, branches)

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
        return self.network.gather(paths, room)

    def logits(
        self, ids_BT: torch.Tensor, cache: Any, past: Sequence[int], last_B: torch.Tensor
    ) -> torch.Tensor:
        """Feed ids behind a gathered cache; logits_BV after each row's position `last_B`."""
        return self.network.logits(ids_BT, cache, past, last_B)

    def _find_eos(self) -> frozenset[int]:
        found: set[int] = set()
        for source in (self.model.generation_config, self.model.config, self.tokenizer):
            eos = getattr(source, "eos_token_id", None)
            found.update([eos] if isinstance(eos, int) else eos or [])
        return frozenset(found)
