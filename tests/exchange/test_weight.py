"""The weight gate under a clock of its own: the share is kept, turns are by priority."""

import random

import pytest
import trio

from klagg_trio.exchange.weight import PAUSE_S_MAX, THROTTLED_S, Priority, WeightGate


async def ask(gate, weight=1, priority=Priority.REPAIR, *, latency_s=0.1, log=None):
    """Make one request that is answered after `latency_s`."""
    charge = await gate.spend(weight, priority=priority)
    sent_s = trio.current_time()
    await trio.sleep(latency_s)
    charge.settle()
    if log is not None:
        log.append((sent_s, trio.current_time(), weight, priority))


async def test_the_share_is_free_at_once(autojump_clock):
    """Requests within the share do not wait."""
    gate = WeightGate(share=0.5)
    for _ in range(100):
        await ask(gate, 10, latency_s=0)
    assert trio.current_time() < 1
    assert gate.statistics().used == 1_000
    assert gate.statistics().limit == 2_400


async def test_above_the_share_requests_wait_for_the_minute(autojump_clock):
    """The request that would pass the share goes when a minute has passed since the others."""
    gate = WeightGate(100, share=0.5)
    started_s = trio.current_time()
    await ask(gate, 48, Priority.TIME)
    await ask(gate, 2, Priority.TIME)
    await ask(gate, 1, Priority.TIME, latency_s=0)
    assert 60 <= trio.current_time() - started_s - 0.1 < 60.01
    assert gate.peak_percent == 50.0


@pytest.mark.parametrize("seed", range(5))
async def test_no_minute_of_the_exchange_holds_more_than_the_share(seed, autojump_clock):
    """Wherever its minutes begin and whenever a request reaches it, none holds more."""
    rng = random.Random(seed)
    gate = WeightGate(share=0.8)
    log = []

    async def work():
        while trio.current_time() < end_s:
            weight = rng.choice([1, 1, 1, 2, 5, 10, 20, 40])
            latency_s = rng.choice([0.01, 0.1, 0.5, 5])
            await ask(gate, weight, rng.choice(list(Priority)), latency_s=latency_s, log=log)

    end_s = trio.current_time() + 200
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(work)
    for start_s in {each[0] for each in log} | {each[1] for each in log}:
        held = sum(
            weight
            for sent_s, answered_s, weight, _ in log
            if answered_s >= start_s and sent_s < start_s + 60
        )
        assert held <= 1_920
    assert gate.peak_percent <= 80


@pytest.mark.slow
async def test_the_allowed_weight_is_used_while_work_remains(autojump_clock):
    """Backfill alone uses at least 95 % of what is allowed."""
    gate = WeightGate()
    log = []

    async def work():
        while trio.current_time() < end_s:
            await ask(gate, 2, Priority.BACKFILL, latency_s=0.1, log=log)

    end_s = trio.current_time() + 600
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(work)
    assert sum(each[2] for each in log if each[0] < end_s) >= 0.95 * 1_920 * 10


async def test_turns_go_by_priority(autojump_clock):
    """Of those that wait the most urgent goes first, and equals in order of arrival."""
    gate = WeightGate(100, share=1.0)
    await ask(gate, 97)
    order = []

    async def wait(name, priority):
        await ask(gate, 97, priority)
        order.append(name)

    async with trio.open_nursery() as nursery:
        for name, priority in [
            ("audit", Priority.AUDIT),
            ("backfill 1", Priority.BACKFILL),
            ("backfill 2", Priority.BACKFILL),
            ("repair", Priority.REPAIR),
        ]:
            nursery.start_soon(wait, name, priority)
            await trio.testing.wait_all_tasks_blocked()
    assert order == ["repair", "backfill 1", "backfill 2", "audit"]


async def test_a_light_request_does_not_pass_a_heavier_one_of_its_rank(autojump_clock):
    """What waits for room is not starved by smaller requests behind it."""
    gate = WeightGate(100, share=1.0)
    await ask(gate, 90)
    order = []

    async def wait(name, weight):
        charge = await gate.spend(weight, priority=Priority.REPAIR)
        order.append(name)
        charge.settle()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "heavy", 95)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait, "light", 1)
    assert order == ["heavy", "light"]


async def test_time_and_discovery_have_room_while_repair_is_at_its_cap(autojump_clock):
    """Repair at full weight delays neither a clock sample nor a new listing."""
    gate = WeightGate()

    async def repair():
        while True:
            await ask(gate, 2)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(repair)
        for _ in range(5):
            await trio.sleep(47)
            started_s = trio.current_time()
            for _ in range(5):
                await ask(gate, 1, Priority.TIME, latency_s=0)
            await ask(gate, 1, Priority.DISCOVERY, latency_s=0)
            assert trio.current_time() - started_s < 0.01
        nursery.cancel_scope.cancel()
    assert gate.peak_percent <= 80


async def test_what_is_heavier_than_everything_goes_alone(autojump_clock):
    """A request that never fits is not refused: it waits until nothing else counts."""
    gate = WeightGate(100, share=0.1)
    await ask(gate, 5)
    await ask(gate, 40)
    assert trio.current_time() >= 60


async def test_the_exchanges_own_count_is_believed(autojump_clock):
    """Weight that others on this address have spent is left alone for a minute."""
    gate = WeightGate(100, share=0.8)
    await ask(gate, 10, latency_s=0)
    gate.observe(60)
    gate.observe(30)
    gate.observe(None)
    assert gate.statistics().used == 60
    await ask(gate, 17, latency_s=0)
    assert trio.current_time() < 1
    await ask(gate, 17, latency_s=0)
    assert trio.current_time() >= 60
    assert gate.peak_percent == 77.0


@pytest.mark.parametrize(("told_s", "waited_s"), [(7.0, 7), (None, THROTTLED_S), (0.0, 1)])
async def test_nothing_goes_before_a_pause_ends(told_s, waited_s, autojump_clock):
    """After a 429 even the most urgent request waits for as long as was asked, or a minute."""
    gate = WeightGate()
    gate.throttled(told_s)
    assert gate.paused
    await ask(gate, 1, Priority.TIME, latency_s=0)
    assert waited_s <= trio.current_time() < waited_s + 0.01
    assert not gate.paused


async def test_nothing_goes_before_a_ban_ends(autojump_clock):
    """A ban holds back those who wait already; a shorter pause does not shorten it."""
    gate = WeightGate(10, share=1.0)
    await ask(gate, 10)
    log = []
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(lambda: ask(gate, 1, log=log))
        await trio.testing.wait_all_tasks_blocked()
        gate.banned(259_200.0)
        gate.throttled(1.0)
    assert min(each[0] for each in log) >= 259_200
    assert (gate.bans, gate.throttlings) == (1, 1)


async def test_a_nonsensical_pause_is_bounded(autojump_clock):
    """No answer can silence the program for years."""
    gate = WeightGate()
    gate.banned(1e15)
    await ask(gate, latency_s=0)
    assert trio.current_time() <= PAUSE_S_MAX + 1


async def test_who_gives_up_makes_room(autojump_clock):
    """A cancelled waiter spends nothing and does not hold up those behind it."""
    gate = WeightGate(100, share=1.0)
    await ask(gate, 60)
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def give_up():
            with scope:
                await ask(gate, 90)

        nursery.start_soon(give_up)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, gate, 20)
        await trio.testing.wait_all_tasks_blocked()
        assert gate.statistics().used == 60
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert gate.statistics().used == 80


async def test_a_refund_leaves_no_trace(autojump_clock):
    """What was never sent is not counted, however often it is settled afterwards."""
    gate = WeightGate(100, share=1.0)
    charge = await gate.spend(50, priority=Priority.REPAIR)
    charge.refund()
    charge.settle()
    assert gate.statistics().used == 0
