"""CoIn in the gateway: commits to hidden reasoning as it is answered, opens it to who paid for it.

Off unless `[coin]` says `enabled = true`: stored fingerprints can be inverted to text. What is
committed to is the reasoning of whole chat answers and streams with one choice: the text in
`reasoning_content` or `reasoning`, or between `<think>` and `</think>` at the start of the content.
Its tokens are those of the model's tokenizer (`models.<name>.tokenizer`; a local model has its
own). Embedding happens after the answer, in one thread; whoever audits meanwhile is told to wait.
The id on the bill is the answer's `x-request-id`; only the key that made the request may audit it.
What the upstream shows of its reasoning goes on to the caller as it is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outlay.audit.coin import CoIn
from outlay.audit.embedding import Embedder, embedder
from outlay.audit.serving import FingerprintStore, provider_routes
from outlay.errors import InputError, OutlayError
from outlay.gateway.bounds import load_tokenizer
from outlay.gateway.closing import Closer
from outlay.gateway.config import CoinTable, ModelTable
from outlay.gateway.local import Holder
from outlay.gateway.upstream import Server

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import Mount

    from outlay.gateway.state import Gateway

log = logging.getLogger("outlay.gateway")
PATH = "/coin"
_OPEN, _CLOSE = "<think>", "</think>"
_NAMES = ("reasoning_content", "reasoning")
_SHORT, _WORDS = 32, 50_000  # characters of a text whose vector is remembered, and how many

Split = Callable[[str], tuple[str, ...]]
"""A text to the texts of its tokens."""


def reasoning(texts: Mapping[str, str]) -> str:
    """The hidden part of an answer's texts by field; "" without one."""
    for name in _NAMES:
        if texts.get(name, "").strip():
            return texts[name]
    head, found, _ = texts.get("content", "").partition(_CLOSE)
    inside = head.lstrip().removeprefix(_OPEN)
    return inside if found and inside != head.lstrip() and inside.strip() else ""


@dataclass
class Audited:
    """Fingerprints of a worker's finished answers.

    Args:
        table: its configuration.

    Raises:
        InputError: for an embedder, a block size or shares that cannot be.
        DependencyError: without the embedder's packages.
    """

    table: CoinTable
    store: FingerprintStore = field(init=False)

    def __post_init__(self) -> None:
        from outlay.models.encoders import encoder_folder

        table = self.table
        self.store = FingerprintStore(table.ttl, table.max_traces, table.max_tokens)
        self._coin = CoIn(
            block=table.block,
            embedder=table.embedder,
            max_block_exposure=table.max_block_exposure,
            max_token_exposure=table.max_token_exposure,
        )
        self.embed: Embedder = embedder(table.embedder)
        encoder_folder(self.embed.name)
        self._thread = ThreadPoolExecutor(1, "coin")
        self._places = threading.BoundedSemaphore(table.queue)

    @contextmanager
    def following(self, owner: str, closer: Closer, server: Server) -> Iterator[None]:
        """While a request is answered: its reasoning is committed to when the answer is whole.

        Args:
            owner: id of the key that may audit it.
            closer: of the request.
            server: of its model.
        """
        name, waiting = closer.answer.id, False
        if closer.wanted.endpoint != "chat" or closer.wanted.choices != 1:
            yield
            return
        self.store.announce(name, owner)
        try:
            yield
            whole = closer.answer.status == 200 and closer.tally.ended
            hidden = reasoning(closer.tally.said()) if whole else ""
            if hidden and not (waiting := self._places.acquire(blocking=False)):
                log.warning("request %s is not committed: too many wait to be embedded", name)
            if waiting:
                job = self._thread.submit(self._commit, name, owner, hidden, closer, server)
                job.add_done_callback(lambda _: self._places.release())
        finally:
            if not waiting:
                self.store.forget(name)

    def _commit(self, name: str, owner: str, hidden: str, closer: Closer, server: Server) -> None:
        try:
            tokens = self._tokens(hidden, closer, server)
            self.store.put(self._coin.commit(tokens, self.embed), name, owner)
        except OutlayError as error:
            log.warning("request %s is not committed: %s", name, error)
            self.store.forget(name)
        except Exception:  # a mistake of ours; the caller has the answer
            log.exception("request %s is not committed", name)
            self.store.forget(name)
        finally:
            self._remember_words_alone()

    def _tokens(self, hidden: str, closer: Closer, server: Server) -> tuple[str, ...]:
        split = splitter(closer.table, server)
        if split is None:
            name = closer.wanted.model
            raise InputError(f"{name} has no tokenizer; give models.{name}.tokenizer")
        tokens = split(hidden)
        if len(tokens) > self.table.max_tokens:
            raise InputError(
                f"{len(tokens)} hidden tokens; coin.max_tokens={self.table.max_tokens}"
            )
        return tokens

    def _remember_words_alone(self) -> None:
        """Blocks are forgotten at once; vectors of single tokens are worth keeping."""
        table = self.embed.table
        for text in [text for text in table if len(text) > _SHORT]:
            del table[text]
        if len(table) > _WORDS:
            table.clear()

    def close(self) -> None:
        """Stop embedding; what waits is not committed."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def splitter(table: ModelTable, server: Server) -> Split | None:
    """What cuts a model's reasoning into tokens; None for a model whose tokens are not known."""
    if table.tokenizer is not None:
        found = load_tokenizer(table.tokenizer)

        def cut(text: str) -> tuple[str, ...]:
            ids = found.encode(text, add_special_tokens=False).ids
            return tuple(found.decode([index], skip_special_tokens=False) for index in ids)

        return cut
    model = server.model() if isinstance(server, Holder) else None
    reader = getattr(model, "tokenizer", None)
    if reader is None:
        return None

    def own(text: str) -> tuple[str, ...]:
        ids = reader(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(reader.batch_decode([[index] for index in ids]))

    return own


def coin_routes(gateway: Gateway, coin: Audited) -> Mount:
    """`/coin/commit` and `/coin/open`, for callers with a key."""
    from starlette.routing import Mount

    async def owner(request: Request) -> str:
        return (await gateway.key(request.scope)).id

    return Mount(PATH, routes=provider_routes(coin.store, owner))
