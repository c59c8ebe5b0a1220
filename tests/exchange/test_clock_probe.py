"""Sampling the exchange's time: the best sample wins, either client does, one stands in."""

import json
import logging

import pytest
import trio

from klagg_trio.core.errors import ConfigurationError, RemoteError
from klagg_trio.exchange.clock_probe import (
    TIMEOUT_S,
    AsksProbe,
    FallbackProbe,
    RestProbe,
    Sample,
    sample_offset,
)
from klagg_trio.exchange.rest import Priority

EPOCH_MS = 1_791_382_000_000


class Probe:
    """An exchange whose clock is a fixed offset away, over a network with given delays."""

    def __init__(self, *delays_s, fails_from=10**9):
        """Each delay is (there, back); the last one stays. Fails from one question on."""
        self.delays_s = list(delays_s)
        self.fails_from = fails_from
        self.asked = 0

    async def server_time_ms(self):
        """Travel there, look at the clock, travel back."""
        self.asked += 1
        if self.asked >= self.fails_from:
            raise RemoteError("down")
        there_s, back_s = self.delays_s.pop(0) if len(self.delays_s) > 1 else self.delays_s[0]
        await trio.sleep(there_s)
        server_ms = round(EPOCH_MS + trio.current_time() * 1000)
        await trio.sleep(back_s)
        return server_ms


async def test_the_shortest_round_trip_wins(autojump_clock):
    """Of several samples the one with the least delay is returned, with its round trip."""
    probe = Probe((0.3, 0.1), (0.02, 0.02), (0.1, 0.2))
    sample = await sample_offset(probe)
    assert sample.round_trip_ms == pytest.approx(40)
    assert sample.offset_ms == pytest.approx(EPOCH_MS, abs=1)
    assert probe.asked == 5


@pytest.mark.parametrize("there_ms", [0, 3, 40, 80])
async def test_the_error_is_half_a_round_trip_at_most(there_ms, autojump_clock):
    """However uneven the ways are, the offset is right to half a round trip."""
    sample = await sample_offset(Probe((there_ms / 1000, (80 - there_ms) / 1000)), count=1)
    assert abs(sample.offset_ms - EPOCH_MS) <= sample.round_trip_ms / 2 + 1


async def test_a_failure_after_a_sample_is_forgiven(autojump_clock):
    """What has been sampled before a failure is good; without any, the failure comes out."""
    assert isinstance(await sample_offset(Probe((0, 0.01), fails_from=3)), Sample)
    with pytest.raises(RemoteError):
        await sample_offset(Probe((0, 0.01), fails_from=1))


async def test_the_second_probe_takes_over_for_good(autojump_clock, caplog):
    """Where the first fails and the second does not, the second is used from then on."""
    first, second = Probe((0, 0), fails_from=3), Probe((0, 0))
    probe = FallbackProbe(first, second)
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            await probe.server_time_ms()
    assert (first.asked, second.asked) == (3, 4)
    assert probe.fallen_back
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_an_outage_is_nobodys_fault(autojump_clock):
    """Where both fail the first one stays in use."""
    first, second = Probe((0, 0), fails_from=1), Probe((0, 0), fails_from=1)
    probe = FallbackProbe(first, second)
    with pytest.raises(RemoteError):
        await probe.server_time_ms()
    first.fails_from = 10**9
    await probe.server_time_ms()
    assert not probe.fallen_back


async def test_the_rest_client_is_asked_first_in_line(autojump_clock):
    """Time goes through the REST client at the highest priority."""

    class Rest:
        async def server_time(self, *, priority):
            assert priority == Priority.TIME
            return 5

    assert await RestProbe(Rest()).server_time_ms() == 5


# -- asks ------------------------------------------------------------------------------------------

GOOD = json.dumps({"serverTime": EPOCH_MS}).encode()


def answer(body=GOOD, status=b"200 OK", headers=b""):
    """Return an HTTP answer."""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)


class Server:
    """A loopback server that gives one answer to everything."""

    def __init__(self, data, *, closes=False):
        """Answer with these bytes, then close if so told."""
        self.data = data
        self.closes = closes
        self.connections = 0
        self.requests = []

    async def serve(self, stream):
        """Answer on one connection."""
        self.connections += 1
        async with stream:
            try:
                while request := await stream.receive_some(65_536):
                    self.requests.append(bytes(request))
                    await stream.send_all(self.data)
                    if self.closes:
                        return
            except trio.BrokenResourceError:
                pass  # the client has given up

    async def run(self, task_status):
        """Listen; the started value is the URL."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
        await trio.serve_listeners(self.serve, [listener])


@pytest.mark.real
async def test_asks_samples_over_one_connection(nursery):
    """A series of samples opens one connection and closes it; another series opens another."""
    server = Server(answer())
    probe = AsksProbe(await nursery.start(server.run))
    for series in (1, 2):
        sample = await sample_offset(probe, count=3)
        assert sample.offset_ms > EPOCH_MS - trio.current_time() * 1000 - 10_000
        assert server.connections == series
    assert len(server.requests) == 6
    assert server.requests[0].startswith(b"GET /fapi/v1/time")
    nursery.cancel_scope.cancel()


@pytest.mark.real
@pytest.mark.parametrize(
    "data",
    [
        answer(b"<html>", b"403 Forbidden"),
        answer(b"", b"302 Found", b"Location: http://127.0.0.1:1/\r\n"),
        answer(b'{"serverTime":"x"}'),
        answer(b" " * 100_000),
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
        b"garbage\r\n\r\n",
        b"",
    ],
)
async def test_bad_answers_to_asks_are_remote_errors(data, nursery):
    """Refusals, redirections, torn and oversized bodies, no HTTP at all: RemoteError each."""
    probe = AsksProbe(await nursery.start(Server(data, closes=True).run))
    with trio.fail_after(2 * TIMEOUT_S), pytest.raises(RemoteError):
        await sample_offset(probe)
    nursery.cancel_scope.cancel()


@pytest.mark.real
async def test_nobody_there_is_a_remote_error():
    """A port where nobody listens is RemoteError."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(RemoteError):
        await AsksProbe(f"http://127.0.0.1:{port}").server_time_ms()


def test_plain_text_off_loopback_is_refused():
    """Only loopback may be asked without TLS."""
    with pytest.raises(ConfigurationError):
        AsksProbe("http://fapi.binance.com")
