"""The exchange's REST interface, behind a Protocol: weights, retries, limits, errors mapped.

Theory of operation
-------------------
A request first passes the weight gate, so that it waits by priority, then the limiter, so that
httpx's pool never has to queue. If the exchange has called a halt meanwhile the weight is given
back and the request waits again. A try has a deadline of its own, from before it connects to the
last byte of its answer, since httpx's timeouts begin anew with every byte that drips in. Should a
pool run dry by that (PoolTimeout), it is replaced and counted.

What an answer may cost is bounded: its body in bytes, as received and as unpacked (`body.py`), its
headers by h11, and what it says about waiting by what the exchange could mean.

What is worth another try at once (a broken connection, a timeout, a 5xx) is tried again by
stamina, a few times, with growing pauses and jitter; each try passes the gate, since the exchange
charges refused requests too. 429 is tried again after the pause. Everything else becomes
RemoteError, or BannedError for 418, and the caller decides.

Nothing here raises an exception of httpx.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Protocol

import httpx
import stamina
import stamina.instrumentation
import trio

from klagg_trio.core.errors import BannedError, RefusedError, RemoteError
from klagg_trio.core.intervals import INTERVALS
from klagg_trio.core.plain import plain, plain_body
from klagg_trio.exchange import wire
from klagg_trio.exchange.address import parse_address
from klagg_trio.exchange.body import ACCEPTED, read_body
from klagg_trio.exchange.proxy import Proxy, refused, unreachable
from klagg_trio.exchange.tls import default_context, network_reason
from klagg_trio.exchange.validate import Klines
from klagg_trio.exchange.weight import PAUSE_S_MAX, Priority, WeightGate

__all__ = ["HttpxRest", "Priority", "Rest", "RestStatistics", "klines_weight"]

BODY_BYTES_MAX: Final = 2 * 1024 * 1024
"""Unpacked. 1,500 klines have 200 kB, the tickers of all symbols 400 kB."""

LISTING_BYTES_MAX: Final = 8 * 1024 * 1024
"""The same for exchangeInfo, which has 1.0 MB."""

EXCHANGE_INFO: Final = "/fapi/v1/exchangeInfo"

CONNECTIONS: Final = 8
"""In one pool: at 100 ms a request that is five times what the weight allows."""

TIMEOUT: Final = httpx.Timeout(connect=5.0, read=10.0, write=5.0, pool=10.0)

REQUEST_S_MAX: Final = 20.0
"""For one try: to connect, to send, to be answered to the last byte, however these drip in."""

CLOSE_S: Final = 1.0
"""To let go of a connection whose answer was not read to its end."""

ATTEMPTS: Final = 4
RETRY_FIRST_S: Final = 0.25
RETRY_MAX_S: Final = 5.0

BAN_S: Final = 120.0
"""The shortest ban; where a 418 does not say how long."""

FIREWALL_S: Final = 60.0
"""Pause after a 403: the firewall bans by rate too."""

SECONDS_MAX: Final = 10**9
"""What a header says above this is taken for this: it is nonsense all the same."""

_HTTP_DATE: Final = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", re.A)

_BAN_UNTIL: Final = re.compile(r"banned until ([0-9]{13})\b")

# Retries are counted in `statistics`; a log line for each would go through the dashboard.
stamina.instrumentation.set_on_retry_hooks(())


@dataclass(frozen=True, slots=True)
class RestStatistics:
    """What has been asked since the start."""

    requests: int
    retries: int
    failures: int
    """Requests given up, each after its tries."""
    pools_rebuilt: int
    rows_refused: int
    """Rows of exchangeInfo that were no good."""


class Rest(Protocol):
    """What klagg asks of the exchange. Every method raises RemoteError where it gets no answer."""

    async def server_time(self, *, priority: Priority) -> int:
        """Return the exchange's time, in ms."""
        ...

    async def exchange_info(self, *, priority: Priority) -> wire.ExchangeInfo:
        """Return all contracts, ours and others."""
        ...

    async def klines(
        self,
        symbol: str,
        interval: str,
        *,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int,
        priority: Priority,
    ) -> Klines:
        """Return official bars by open time, both ends inclusive, the one still open included."""
        ...

    async def agg_trades(
        self,
        symbol: str,
        *,
        from_id: int | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int,
        priority: Priority,
    ) -> list[wire.AggTrade]:
        """Return past trades, at most 48 hours old. Give an id or times, not both."""
        ...

    async def tickers(self, *, priority: Priority) -> dict[str, Decimal]:
        """Return the last price of every symbol in trading."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...

    def statistics(self) -> RestStatistics:
        """Return the counts."""
        ...


def klines_weight(limit: int) -> int:
    """Return what /klines costs: the documented bands, which are nowhere below the measured."""
    for highest, weight in ((99, 1), (499, 2), (1000, 5)):
        if limit <= highest:
            return weight
    return 10


class _Retryable(Exception):
    """One try has failed in a way that another may not."""


class _Throttled(_Retryable):
    """The exchange has said 429; the gate knows."""


@dataclass(slots=True)
class _Pool:
    """A client and how many requests are in it, so that it is closed after the last of them."""

    client: httpx.AsyncClient
    users: int = 0
    retired: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: httpx.Headers
    body: bytes


class HttpxRest:
    """`Rest` by httpx."""

    def __init__(
        self,
        base_url: str,
        gate: WeightGate,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        connections: int = CONNECTIONS,
        proxy: Proxy | None = None,
    ) -> None:
        """Connect to nothing yet. ConfigurationError for plain http off loopback.

        `transport` stands in for the network, in tests and in the simulator. `proxy` is what
        `find_proxy` says for this address.
        """
        self._address = parse_address(base_url, "https")
        self._gate = gate
        self._transport = transport
        self._connections = connections
        self._proxy = proxy
        self._limiter = trio.CapacityLimiter(connections)
        self._pool = self._new_pool()
        self._server_minus_trio_ms: float | None = None
        """To tell how long a ban lasts that ends at a moment of exchange time."""
        self._requests = 0
        self._retries = 0
        self._failures = 0
        self._pools_rebuilt = 0
        self._rows_refused = 0

    # -- What can be asked -------------------------------------------------------------------------

    async def server_time(self, *, priority: Priority) -> int:
        """Return the exchange's time, in ms."""
        body = await self._get("/fapi/v1/time", {}, 1, priority)
        with self._of("/fapi/v1/time"):
            server_ms = wire.decode_server_time(body)
        self._server_minus_trio_ms = server_ms - trio.current_time() * 1000
        return server_ms

    async def exchange_info(self, *, priority: Priority) -> wire.ExchangeInfo:
        """Return all contracts, ours and others."""
        body = await self._get(EXCHANGE_INFO, {}, 1, priority)
        with self._of(EXCHANGE_INFO):
            info = wire.decode_exchange_info(body)
        self._rows_refused = len(info.unreadable) + info.nameless
        return info

    async def klines(
        self,
        symbol: str,
        interval: str,
        *,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int,
        priority: Priority,
    ) -> Klines:
        """Return official bars by open time, both ends inclusive, the one still open included."""
        query: dict[str, str | int | None] = {
            "symbol": symbol,
            "interval": interval,
            "startTime": start_ms,
            "endTime": end_ms,
            "limit": limit,
        }
        body = await self._get("/fapi/v1/klines", query, klines_weight(limit), priority)
        with self._of("/fapi/v1/klines"):
            return wire.decode_klines(body, INTERVALS[interval], first_ms=start_ms, last_ms=end_ms)

    async def agg_trades(
        self,
        symbol: str,
        *,
        from_id: int | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int,
        priority: Priority,
    ) -> list[wire.AggTrade]:
        """Return past trades, at most 48 hours old. Give an id or times, not both."""
        query: dict[str, str | int | None] = {
            "symbol": symbol,
            "fromId": from_id,
            "startTime": start_ms,
            "endTime": end_ms,
            "limit": limit,
        }
        body = await self._get("/fapi/v1/aggTrades", query, 20, priority)
        with self._of("/fapi/v1/aggTrades"):
            return wire.decode_agg_trades(body, symbol)

    async def tickers(self, *, priority: Priority) -> dict[str, Decimal]:
        """Return the last price of every symbol in trading."""
        body = await self._get("/fapi/v1/ticker/24hr", {}, 40, priority)
        with self._of("/fapi/v1/ticker/24hr"):
            return wire.decode_tickers(body)

    @contextmanager
    def _of(self, path: str) -> Iterator[None]:
        """Say of an answer that is no good whose it was."""
        try:
            yield
        except RemoteError as error:
            raise RemoteError(f"{self._address.url}{path}: {error}") from error

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.client.aclose()

    def statistics(self) -> RestStatistics:
        """Return the counts."""
        return RestStatistics(
            requests=self._requests,
            retries=self._retries,
            failures=self._failures,
            pools_rebuilt=self._pools_rebuilt,
            rows_refused=self._rows_refused,
        )

    # -- Tries -------------------------------------------------------------------------------------

    async def _get(
        self, path: str, query: dict[str, str | int | None], weight: int, priority: Priority
    ) -> bytes:
        """Return the body of a good answer, after as many tries as it takes and is worth."""
        given = {name: value for name, value in query.items() if value is not None}
        tries = stamina.retry_context(
            on=_Retryable,
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=RETRY_FIRST_S,
            wait_max=RETRY_MAX_S,
            wait_jitter=RETRY_FIRST_S,
        )
        try:
            async for attempt in tries:
                with attempt:
                    self._retries += attempt.num > 1
                    return await self._try(path, given, weight, priority)
        except _Retryable as error:
            self._failures += 1
            raise RemoteError(f"{self._address.url}{path}: {error}; try again later") from error
        except RemoteError:
            self._failures += 1
            raise
        raise AssertionError("unreachable: the last try returns or raises")

    async def _try(
        self, path: str, query: dict[str, str | int], weight: int, priority: Priority
    ) -> bytes:
        """Make one request, when it is allowed, and judge its answer."""
        while True:
            charge = await self._gate.spend(weight, priority=priority)
            try:
                async with self._limiter:
                    if self._gate.paused:
                        charge.refund()
                        continue
                    self._requests += 1
                    answer = await self._ask(path, query)
                    # Before the weight is settled and others go on: this may call a halt.
                    return self._judged(path, answer)
            finally:
                charge.settle()

    async def _ask(self, path: str, query: dict[str, str | int]) -> _Answer:
        """Send one request and read its answer, of any status, within the time for it."""
        with trio.move_on_after(REQUEST_S_MAX):
            return await self._send(path, query)
        raise _Retryable(f"the answer took longer than {REQUEST_S_MAX:g} s")

    async def _send(self, path: str, query: dict[str, str | int]) -> _Answer:
        async with self._using_pool() as pool:
            try:
                url = self._address.url + path
                request = pool.client.build_request("GET", url, params=query)
                response = await pool.client.send(request, stream=True)
                try:
                    bytes_max = LISTING_BYTES_MAX if path == EXCHANGE_INFO else BODY_BYTES_MAX
                    body = await read_body(response, bytes_max)
                finally:
                    # httpx's own closing does not wait for the peer.
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
                        await response.aclose()
                return _Answer(response.status_code, response.headers, body)
            except RemoteError as error:
                raise RemoteError(f"{self._address.url}{path}: {error}") from error
            except httpx.PoolTimeout as error:
                self._replace(pool)
                raise _Retryable("the connection pool was stuck, and has been replaced") from error
            except httpx.TransportError as error:
                raise self._unreachable(error) from error
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
                raise RemoteError(
                    f"{self._address.url}{path} gave a broken answer: {network_reason(error)}"
                ) from error

    # -- Pools -------------------------------------------------------------------------------------

    def _new_pool(self) -> _Pool:
        return _Pool(
            httpx.AsyncClient(
                transport=self._transport,
                # Plain http goes to loopback only: there is nothing to verify then.
                verify=default_context() if self._address.tls else False,
                proxy=self._httpx_proxy(),
                # Which proxy is `find_proxy`'s to say, and there is no netrc.
                trust_env=False,
                timeout=TIMEOUT,
                limits=httpx.Limits(
                    max_connections=self._connections,
                    max_keepalive_connections=self._connections,
                ),
                follow_redirects=False,
                headers={
                    "User-Agent": "klagg",
                    "Accept": "application/json",
                    "Accept-Encoding": ACCEPTED,
                },
            )
        )

    def _httpx_proxy(self) -> httpx.Proxy | None:
        proxy = self._proxy
        if proxy is None:
            return None
        return httpx.Proxy(
            proxy.url,
            auth=(proxy.username, proxy.password) if proxy.username or proxy.password else None,
            ssl_context=default_context() if proxy.scheme == "https" else None,
        )

    def _unreachable(self, error: httpx.TransportError) -> Exception:
        """Say why nothing was answered, and whose fault it is. A proxy's refusal is for good."""
        reason = network_reason(error)
        if self._proxy is None:
            return _Retryable(reason)
        if isinstance(error, httpx.ProxyError):
            status, _, words = str(error).partition(" ")
            if status.isascii() and status.isdigit():
                authority = f"{self._address.host}:{self._address.port}"
                return RemoteError(refused(self._proxy, int(status), words, authority))
            return RemoteError(unreachable(self._proxy, reason))
        return _Retryable(f"through the proxy {self._proxy}: {reason}")

    @asynccontextmanager
    async def _using_pool(self) -> AsyncIterator[_Pool]:
        """Use the pool in force; close it where it was replaced and this was its last user."""
        pool = self._pool
        pool.users += 1
        try:
            yield pool
        finally:
            pool.users -= 1
            if pool.retired and not pool.users and self._transport is None:
                with trio.CancelScope(shield=True):
                    await pool.client.aclose()

    def _replace(self, pool: _Pool) -> None:
        """Put a new pool in force, unless another request has done so already."""
        if pool is self._pool:
            self._pools_rebuilt += 1
            pool.retired = True
            self._pool = self._new_pool()

    # -- Judging -----------------------------------------------------------------------------------

    def _judged(self, path: str, answer: _Answer) -> bytes:
        """Return the body of a good answer; raise what any other means."""
        self._gate.observe(_integer(answer.headers.get("X-MBX-USED-WEIGHT-1M")))
        status = answer.status
        if status == 200:
            return answer.body
        error = wire.decode_error(answer.body)
        words = plain(error[1]) if error else plain_body(answer.body)
        text = f"{words!r} (code {error[0]})" if error else repr(words) if words else "no reason"
        where = f"{self._address.url}{path}"
        retry_after_s = _retry_after_s(answer.headers)
        if status == 418:
            raise self._ban(answer, text, retry_after_s)
        if status == 429:
            self._gate.throttled(retry_after_s)
            raise _Throttled(f"too many requests: {text}")
        if status == 403:
            self._gate.throttled(FIREWALL_S if retry_after_s is None else retry_after_s)
            raise RemoteError(
                f"{where}: the exchange's firewall refused the request (403): {text}; check "
                "whether this address may use it, and lower weight_share"
            )
        if status == 451:
            raise RemoteError(
                f"{where}: the exchange does not serve this region (451): {text}; use another "
                "network"
            )
        if status >= 500 or status == 408:
            raise _Retryable(f"the exchange had a fault ({status}): {text}")
        if 300 <= status < 400:
            raise RemoteError(
                f"{where}: answered by a redirection ({status}) to "
                f"{plain(answer.headers.get('Location', 'nowhere'), 100)!r}, which is not "
                "followed; correct rest_url"
            )
        advice = "" if error else "; check rest_url: the exchange gives its reasons otherwise"
        raise RefusedError(
            f"{where}: the exchange refused the request ({status}): {text}{advice}",
            error[0] if error else None,
        )

    def _ban(self, answer: _Answer, text: str, retry_after_s: int | None) -> BannedError:
        """Tell the gate how long the ban lasts, and make the error."""
        now_ms = self._exchange_ms(answer)
        told = _BAN_UNTIL.search(text)
        until_ms = int(told[1]) if told else None
        waits_s = [float(retry_after_s)] if retry_after_s is not None else []
        if until_ms is not None and now_ms is not None and until_ms > now_ms:
            waits_s.append((until_ms - now_ms) / 1000)
        wait_s = min(max(waits_s, default=BAN_S), PAUSE_S_MAX)
        self._gate.banned(wait_s)
        if now_ms is not None:
            until_ms = now_ms + int(wait_s * 1000)
        return BannedError(
            f"{self._address.url}: the exchange has banned this address for "
            f"{max(wait_s, 1):,.0f} s more (418): {text}; wait, and lower weight_share",
            until_ms,
        )

    def _exchange_ms(self, answer: _Answer) -> int | None:
        """Return the exchange's time as far as it is known: by its clock, or by a Date header."""
        if self._server_minus_trio_ms is not None:
            return int(trio.current_time() * 1000 + self._server_minus_trio_ms)
        return _date_ms(answer.headers.get("Date"))


def _integer(text: str | None) -> int | None:
    """Return a header's value; None for what is no plain number."""
    if text is None or re.fullmatch("[0-9]{1,40}", text) is None:
        return None
    return min(int(text), SECONDS_MAX)


def _retry_after_s(headers: httpx.Headers) -> int | None:
    """Return for how long an answer asks to wait: a number of seconds, or a date by its own."""
    text = headers.get("Retry-After")
    at_ms, now_ms = _date_ms(text), _date_ms(headers.get("Date"))
    if at_ms is not None and now_ms is not None:
        return min(max(at_ms - now_ms, 0) // 1000, SECONDS_MAX)
    return _integer(text)


def _date_ms(text: str | None) -> int | None:
    """Return a header's date; None for what is none."""
    if text is None or _HTTP_DATE.fullmatch(text) is None:
        return None
    try:
        return int(email.utils.parsedate_to_datetime(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
