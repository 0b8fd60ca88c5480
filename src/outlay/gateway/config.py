"""The gateway's configuration: one TOML file; every value also an environment variable.

TOML owns the server, the store, upstreams, models, prices and routes, and is read again when it
changes (server and store need a restart). The database owns keys and budgets. A variable is
`OUTLAY_` and the path joined by two underscores: `OUTLAY_SERVER__PORT=9000`; what is a table of
tables (`upstreams`, `models`, `routes`) is JSON: `OUTLAY_MODELS='{"m": {"upstream": "u"}}'`.
"""

from __future__ import annotations

import ipaddress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from outlay.errors import InputError
from outlay.gateway.money import Price
from outlay.gateway.policies.tables import NONE, Name, Offer, Policy, Scoring

Endpoint = Literal["chat", "completions", "responses", "embeddings"]
ENDPOINTS: dict[Endpoint, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
}
PRICED = (
    "service_tier",
    "prediction",
    "web_search_options",
    "modalities",
    "audio",
    "background",
    "previous_response_id",
    "conversation",
    "prompt_cache_retention",
)
"""Request fields that can change what a request costs, refused unless a route allows them."""
Priced = Annotated[str, Field(min_length=1, max_length=64)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _http(address: str, name: str, instead: str) -> str:
    """An address that holds nothing secret."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name} {address!r} is no http(s) address")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"{name} may hold no user, password, query or fragment; use {instead}")
    return address


class Server(_Table):
    """How it listens.

    Args:
        host, port: loopback by default; another address needs `expose`.
        expose: say that other machines may connect.
        workers: processes.
        max_body: largest request body in bytes.
        max_depth: deepest nesting of a body's JSON.
        max_tokens: largest output that any request may ask for.
        timeout: seconds that a request may take in all.
        grace: seconds that streams may go on after a stop was asked for.
        cors: origins that browsers may call from; none by default.
        certificate, key: PEM files, for TLS.
        log_prompts: write request bodies, prompts included, in logs; never by default.
        log_level: debug, info, warning, error.
        docs: serve the OpenAPI page at /docs.
        cookie_secure: mark the dashboard's cookie Secure although the gateway itself has no TLS
            (behind a proxy that has).
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    expose: bool = False
    workers: int = Field(default=1, ge=1, le=64)
    max_body: int = Field(default=10_000_000, ge=1024, le=1_000_000_000)
    max_depth: int = Field(default=64, ge=4, le=512)
    max_tokens: int = Field(default=1_000_000, ge=1)
    timeout: float = Field(default=600.0, gt=0)
    grace: float = Field(default=30.0, ge=0)
    cors: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    log_prompts: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    docs: bool = True
    cookie_secure: bool = False

    @model_validator(mode="after")
    def _exposed(self) -> Server:
        try:
            loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            loopback = self.host == "localhost"
        if not loopback and not self.expose:
            raise ValueError(
                f"host={self.host} lets other machines connect; set expose = true to allow it"
            )
        if (self.certificate is None) != (self.key is None):
            raise ValueError("TLS needs both certificate and key")
        return self


class StoreTable(_Table):
    """Where keys, budgets and the ledger are kept.

    Args:
        url: `sqlite:///path` or `postgresql://user@host/name`.
        durability: "machine": what was acknowledged survives a power cut; "process": a killed
            process, at fewer disk flushes.
        lease: seconds that a reservation outlives its worker's last sign of life.
        keep_outcomes: seconds that the outcome of a request with an idempotency key is kept.
        max_outcome: largest outcome in bytes that is kept; a larger one is answered with 409.
    """

    url: SecretStr = SecretStr("sqlite:///outlay.db")
    durability: Literal["machine", "process"] = "machine"
    lease: float = Field(default=30.0, ge=0.5, le=3600)
    keep_outcomes: float = Field(default=86_400.0, ge=0)
    max_outcome: int = Field(default=1_000_000, ge=0)


class Upstream(_Table):
    """A server that speaks OpenAI's protocol, or a model in this process.

    Args:
        url: base, up to and including `/v1`; None for a local model.
        local: spec of a local model ("embedded", a folder), instead of `url`.
        api_key: sent as a bearer token; better from the environment (`api_key_env`).
        api_key_env: name of the variable that holds it.
        connect_timeout: seconds.
        timeout: seconds until a whole answer is there.
        idle_timeout: seconds between pieces of a stream.
        keepalive: seconds that an idle connection is kept; below the server's own, since a request
            on a connection that the server just closed counts as sent.
        charge_failures: whether an answer of 500, 502 or 504 is charged in full ("full": the
            upstream may bill it) or not ("none").
        retries: further attempts after a failure before the first byte; each reserves anew.
        backoff: seconds before the first retry; doubles.
        max_connections: at most this many requests in flight in a worker; others wait.
        max_answer: largest answer in bytes.
        breaker_failures: consecutive failures that open the circuit.
        breaker_seconds: until one request may try again.
        private: allow an address that is not public other than loopback.
        headers: further headers, sent as they are.
        offers: what it can do beyond plain chats, for policies that need it.
        served_by: the server's kind, for policies whose thinking budget the server enforces.
    """

    url: str | None = None
    local: str | None = None
    api_key: SecretStr | None = None
    api_key_env: str | None = None
    connect_timeout: float = Field(default=10.0, gt=0)
    timeout: float = Field(default=600.0, gt=0)
    idle_timeout: float = Field(default=120.0, gt=0)
    keepalive: float = Field(default=4.0, gt=0)
    charge_failures: Literal["full", "none"] = "full"
    retries: int = Field(default=1, ge=0, le=10)
    backoff: float = Field(default=0.5, ge=0)
    max_connections: int = Field(default=256, ge=1)
    max_answer: int = Field(default=64_000_000, ge=1024)
    breaker_failures: int = Field(default=5, ge=1)
    breaker_seconds: float = Field(default=30.0, gt=0)
    private: bool = False
    headers: dict[str, str] = Field(default_factory=dict)
    offers: tuple[Offer, ...] = ()
    served_by: Literal["vllm", "llamacpp"] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Upstream:
        if (self.url is None) == (self.local is None):
            raise ValueError("an upstream needs either url or local")
        if self.url is not None:
            _http(self.url, "url", "api_key")
        if self.api_key is not None and self.api_key_env is not None:
            raise ValueError("give api_key or api_key_env, not both")
        return self


class ModelTable(_Table):
    """A model name that callers may ask for.

    Args:
        upstream: name of the upstream.
        name: the upstream's own name for it; None is the same.
        tokenizer: `tokenizer.json` of the model, a file; None reserves by bytes.
        template_tokens: bound of what the chat template adds to a request, and to each message.
        image_tokens, audio_tokens: bound of one such part; None refuses them.
        tool_tokens: bound of what the template adds to each tool, beside its own text; None refuses
            tools.
        context: the model's window; a longer worst case is refused. None is no limit.
        price: US dollars per million tokens; without it nothing is admitted on a money budget.
        limit_field: what the upstream calls the limit on generated tokens in chat requests.
        tokenizer_config: `tokenizer_config.json` beside `tokenizer`, for its chat template, which
            policies need to continue an answer through /completions.
    """

    upstream: str
    name: str | None = None
    tokenizer: Path | None = None
    template_tokens: int = Field(default=32, ge=0)
    image_tokens: int | None = Field(default=None, ge=0)
    audio_tokens: int | None = Field(default=None, ge=0)
    tool_tokens: int | None = Field(default=None, ge=0)
    context: int | None = Field(default=None, ge=1)
    price: Price | None = None
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    tokenizer_config: Path | None = None


class Route(_Table):
    """What requests for some models may do.

    Args:
        models: patterns of model names.
        endpoints: which endpoints; empty for all.
        default_max_output: injected where a request sets no limit.
        max_output: the most that a request may ask for per choice; None is the server's.
        least_output: the fewest tokens worth sending to a budget in mode "shrink".
        allow: fields that change the price and are allowed all the same.
        max_n: most choices.
        policy: that answers its requests, unless they choose another one; None is none.
        choose: policies that a request may choose, "none" among them to allow it.
        unsupported: what becomes of requests that a policy cannot take (tools, a JSON schema,
            several choices, images): "skip" sends them as they are, "reject" refuses them.
    """

    models: tuple[str, ...] = ("*",)
    endpoints: tuple[Endpoint, ...] = ()
    default_max_output: int = Field(default=1024, ge=1)
    max_output: int | None = Field(default=None, ge=1)
    least_output: int = Field(default=1, ge=1)
    allow: tuple[Priced, ...] = ()
    max_n: int = Field(default=16, ge=1, le=1024)
    policy: Name | None = None
    choose: tuple[Name, ...] = ()
    unsupported: Literal["skip", "reject"] = "skip"

    @model_validator(mode="after")
    def _default_fits(self) -> Route:
        if self.max_output is not None and self.default_max_output > self.max_output:
            raise ValueError("default_max_output is larger than max_output")
        return self


class Telemetry(_Table):
    """Traces for an OpenTelemetry collector; needs the extra `otel`. Never prompts, never keys.

    Args:
        endpoint: of OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`; None traces nothing.
        service: name of this service in traces.
        sample: share of requests that are traced, where the caller's `traceparent` does not decide.
        timeout: seconds that one export may take.
        private: allow an address that is not public other than loopback.
        headers: further headers for the collector, such as its credentials.
    """

    endpoint: str | None = None
    service: str = Field(default="outlay", min_length=1, max_length=200)
    sample: float = Field(default=1.0, ge=0, le=1)
    timeout: float = Field(default=5.0, gt=0, le=60)
    private: bool = False
    headers: dict[str, SecretStr] = Field(default_factory=dict)

    @field_validator("endpoint")
    @classmethod
    def _address(cls, endpoint: str | None) -> str | None:
        return None if endpoint is None else _http(endpoint, "endpoint", "headers")


class CoinTable(_Table):
    """Audits of hidden reasoning (CoIn). Stored fingerprints can be inverted to text: off unless
    asked for; they are in memory alone.

    Args:
        enabled: commit to the reasoning of answers, and open it to the key that asked for them.
        ttl: seconds that the fingerprints of an answer are kept.
        max_traces, max_tokens: answers, and hidden tokens of all of them, that are kept at most;
            the oldest go first. A token takes about 2 kB.
        queue: answers that may wait to be embedded; more are not committed to.
        block: tokens per block; auditors need heads for this size.
        embedder: that auditors use, too.
        max_block_exposure, max_token_exposure: largest shares that are ever opened of one answer.
    """

    enabled: bool = False
    ttl: float = Field(default=900.0, gt=0, le=86_400)
    max_traces: int = Field(default=1000, ge=1, le=1_000_000)
    max_tokens: int = Field(default=200_000, ge=1, le=100_000_000)
    queue: int = Field(default=16, ge=1, le=10_000)
    block: int = Field(default=256, ge=1, le=100_000)
    embedder: str = "minilm"
    max_block_exposure: float = Field(default=0.4, gt=0, le=1)
    max_token_exposure: float = Field(default=0.04, gt=0, le=1)


class Config(BaseSettings):
    """The whole file."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="OUTLAY_", env_nested_delimiter="__"
    )

    server: Server = Server()
    store: StoreTable = StoreTable()
    upstreams: dict[str, Upstream] = Field(default_factory=dict)
    models: dict[str, ModelTable] = Field(default_factory=dict)
    routes: dict[str, Route] = Field(default_factory=lambda: {"default": Route()})
    telemetry: Telemetry = Telemetry()
    policies: dict[Name, Policy] = Field(default_factory=dict)
    scoring: Scoring = Scoring()
    coin: CoinTable = CoinTable()

    @field_validator("models")
    @classmethod
    def _names(cls, models: dict[str, ModelTable]) -> dict[str, ModelTable]:
        for name in models:
            if not 1 <= len(name) <= 200 or not name.isprintable():
                raise ValueError(f"model name {name[:40]!r}; 1 to 200 printable characters")
        return models

    @model_validator(mode="after")
    def _linked(self) -> Config:
        for name, model in self.models.items():
            if model.upstream not in self.upstreams:
                known = ", ".join(self.upstreams) or "none"
                raise ValueError(
                    f"models.{name}.upstream is {model.upstream!r}; upstreams are: {known}"
                )
        if self.coin.enabled and self.server.workers > 1:
            raise ValueError("coin keeps fingerprints in one process; set server.workers = 1")
        if NONE in self.policies:
            raise ValueError(f"policies.{NONE}: that name says that there is no policy")
        for name, route in self.routes.items():
            for policy in (*((route.policy,) if route.policy else ()), *route.choose):
                if policy != NONE and policy not in self.policies:
                    known = ", ".join(self.policies) or "none"
                    raise ValueError(f"routes.{name} names {policy!r}; policies are: {known}")
        return self

    def route(self, model: str, endpoint: Endpoint) -> tuple[str, Route] | None:
        """The first route that takes a model and an endpoint."""
        for name, route in self.routes.items():
            fits = not route.endpoints or endpoint in route.endpoints
            if fits and any(fnmatchcase(model, pattern) for pattern in route.models):
                return name, route
        return None


def read(path: str | Path | None) -> Config:
    """Read a file (None: the environment alone).

    Raises:
        InputError: if it cannot be read, is not TOML, or has entries that cannot be.
    """
    import tomllib

    if path is not None and not Path(path).is_file():
        raise InputError(f"{path} is no file; write one, or see 'outlay serve --example'")

    class FromFile(Config):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            file = TomlConfigSettingsSource(settings_cls, toml_file=path)
            return (init_settings, env_settings, file)  # the first one that has a value wins

    try:
        return FromFile()
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML ({error})") from error
    except ValidationError as error:
        raise InputError(f"{path or 'the environment'}: {explain(error)}") from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path or 'the environment'} cannot be read ({error})") from error


def explain(error: ValidationError) -> str:
    """A validation error in one line, without the values (they may be secrets)."""
    parts = []
    for item in error.errors(include_input=False, include_url=False):
        where = ".".join(str(step) for step in item["loc"])
        parts.append(f"{where}: {item['msg']}" if where else item["msg"])
    return "; ".join(parts)
