"""Money in integer nano-dollars, prices in integer pico-dollars a token.

One nano-dollar is 1e-9 US dollars. A price of 0.0375 dollars per million tokens is 37,500
pico-dollars a token: every price that providers publish is a whole number of them, so that sums are
exact and a cost is rounded once, up.
"""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field

from outlay.errors import InputError

NANO = 10**9
_PICO_PER_MILLION = 10**6  # pico-dollars a token in one dollar per million tokens


def nano(usd: Decimal | str | int) -> int:
    """US dollars as nano-dollars.

    Raises:
        InputError: for an amount that is negative, not a number, or finer than a nano-dollar.
    """
    try:
        value = Decimal(usd) * NANO
        whole = int(value)
    except (ArithmeticError, ValueError) as error:
        raise InputError(f"{usd!r} is no amount of money; write dollars, such as 12.50") from error
    if value != whole or whole < 0:
        raise InputError(f"{usd} dollars; must be >= 0 and a whole number of nano-dollars")
    return whole


def dollars(amount: int) -> str:
    """Nano-dollars as a decimal string of dollars without trailing zeros."""
    text = f"{Decimal(amount) / NANO:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class Price(BaseModel):
    """US dollars per million tokens, and per request.

    Args:
        input: prompt tokens.
        cached: prompt tokens that the upstream read from its cache; None costs as `input`.
        cache_write: prompt tokens that it wrote to its cache; None costs as `input`.
        output: generated tokens, reasoning included.
        request: per request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Decimal = Field(ge=0)
    cached: Decimal | None = Field(default=None, ge=0)
    cache_write: Decimal | None = Field(default=None, ge=0)
    output: Decimal = Field(ge=0)
    request: Decimal = Field(default=Decimal(0), ge=0)

    def model_post_init(self, context: object) -> None:
        """Take the prices to pico-dollars once."""
        rates = (self.input, self.cached, self.cache_write, self.output)
        pico = [None if rate is None else rate * _PICO_PER_MILLION for rate in rates]
        if any(rate is not None and rate != int(rate) for rate in pico):
            raise ValueError("a price per million tokens has more than six decimals; round it up")
        base = int(pico[0] or 0)
        cached, written = (base if rate is None else int(rate) for rate in pico[1:3])
        object.__setattr__(self, "_rates", (base, cached, written, int(pico[3] or 0)))
        object.__setattr__(self, "_request", nano(self.request))

    def worst(self, prompt: int, output: int, requests: int = 1) -> int:
        """Nano-dollars at the highest rate that can apply to every token, rounded up."""
        base, cached, written, out = self._rates  # type: ignore[attr-defined]
        total = prompt * max(base, cached, written) + output * out
        return -(-total // 1000) + requests * int(self._request)  # type: ignore[attr-defined]

    def cost(self, prompt: int, cached: int, output: int, requests: int = 1) -> int:
        """Nano-dollars of what was used; `cached` is part of `prompt`. Rounded up.

        What an upstream wrote to its cache is not in OpenAI's usage, so uncached prompt tokens cost
        the higher of `input` and `cache_write`.
        """
        base, rate, written, out = self._rates  # type: ignore[attr-defined]
        total = (prompt - cached) * max(base, written) + cached * rate + output * out
        return -(-total // 1000) + requests * int(self._request)  # type: ignore[attr-defined]

    def most_output(self, prompt: int, amount: int, requests: int = 1) -> int | None:
        """Generated tokens that `amount` nano-dollars buy after the prompt.

        None for any number, -1 for not even the prompt.
        """
        base, cached, written, out = self._rates  # type: ignore[attr-defined]
        pico = (amount - requests * int(self._request)) * 1000  # type: ignore[attr-defined]
        room = pico - prompt * max(base, cached, written)
        if room < 0:
            return -1
        return room // out if out else None
