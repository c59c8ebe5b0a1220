"""Which minutes can be vouched for: what ids and the liveness of the feed say.

Theory of operation
-------------------
Four things make a minute suspect:

1. *Liveness.* The feed of the symbol was not alive for the whole minute: the minute began before
   `live_since_ms`, or ended after `lost_ms`.
2. *Missing ids.* Aggregate ids of a symbol are contiguous. A jump while the feed is up means that
   trades between the last one's time and this one's are missing (`Gap`), so those minutes are
   suspect until the missing ids arrive after all, out of order.
3. *Too late.* A trade came for a minute that is no longer held.
4. *Price.* The minute is flat, at a close that a missed trade may have moved.

After a loss a symbol is *in doubt*: `next_id` is None and `resume_id` is the id that would
continue. The first trade made under a live feed decides: if it has that id nothing was missed, and
the minutes that are suspect for want of proof (`doubtful`, for reasons 1 and 4) are *proven*; if
not, they are `missing` trades and repair owes them. An official bar from the time when the feed was
live again also settles the price. A minute may be suspect for several reasons and is cleared only
when none is left.

Nothing here touches a sealed bar. What is found goes into `Findings`, in order; `restate` applies
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from klagg_trio.core.bar import Bar, Source
from klagg_trio.core.facts import Event
from klagg_trio.core.gaps import Spans
from klagg_trio.core.intervals import MINUTE, MINUTE_MS
from klagg_trio.core.shard.state import Gap, ShardState, SymbolState
from klagg_trio.core.trade import Trade

GAPS_MAX: Final = 32
"""Open id gaps remembered per symbol; an older one is given up to repair."""

JUMP_MAX: Final = 10_000_000
"""More ids than the busiest symbol uses in a day: a larger jump under a live feed tells nothing of
missing trades, only that the numbering broke."""


DISORDER_MS_MAX: Final = 1_000
"""A trade is made no later than one with a higher id, but for what the exchange aggregates."""


CONTRADICTIONS_MAX: Final = 3
"""So many trades in a row contradict the one before them: then that one was wrong."""


@dataclass(slots=True)
class Findings:
    """What evidence says of the minutes of one symbol, in the order in which it was found."""

    steps: list[tuple[bool, int, int]] = field(default_factory=list)
    """Whether to doubt (or else to clear), the first and the last minute."""
    events: list[Event] = field(default_factory=list)

    def doubt(self, first_ms: int, last_ms: int) -> None:
        """Call these minutes suspect, where they are sealed."""
        self.steps.append((True, first_ms, last_ms))

    def clear(self, first_ms: int, last_ms: int) -> None:
        """Call these minutes right, where no reason to doubt them is left."""
        self.steps.append((False, first_ms, last_ms))


def miss(state: SymbolState, first_ms: int, last_ms: int, findings: Findings) -> None:
    """Leave minutes to repair, sealed or not."""
    state.missing.add(first_ms, last_ms)
    findings.doubt(first_ms, last_ms)


# -- Ids -------------------------------------------------------------------------------------------


def admit(state: SymbolState, trade: Trade, findings: Findings) -> bool:
    """Judge a trade's id; remember gaps, close them, resolve doubt. False for a duplicate."""
    in_doubt = state.in_doubt
    expected = state.resume_id if in_doubt else state.next_id
    if expected is not None and trade.id < expected:
        if _fill_gap(state, trade, findings):
            return True
        if state.last_trade_ms is not None and trade.time_ms <= state.last_trade_ms:
            return False
        _renumber(state, trade, findings)  # newer than all that was seen: no duplicate
    elif in_doubt:
        _weigh_doubt(state, trade, findings)
    elif expected is not None and trade.id > expected:
        _open_gap(state, expected, trade, findings)
    if in_doubt and not _decides(state, trade):
        state.resume_id = trade.id + 1
    else:
        state.next_id, state.resume_id = trade.id + 1, None
    return True


def contradicts(state: SymbolState, trade: Trade) -> bool:
    """Whether a trade's time cannot be, by the ids around it: later ids are made later.

    One such trade is refused; its minutes are owed by the jump of ids that this leaves. Where it
    goes on, it was the trade before them that had a wrong time, and the numbering starts over.
    """
    expected = state.resume_id if state.in_doubt else state.next_id
    last_ms = state.last_trade_ms
    if expected is None or last_ms is None or trade.id < expected:
        return False
    if trade.time_ms >= last_ms - DISORDER_MS_MAX:
        state.contradictions = 0
        return False
    state.contradictions += 1
    if state.contradictions < CONTRADICTIONS_MAX:
        return True
    state.contradictions = 0
    state.last_trade_ms = state.next_id = state.resume_id = None
    return False


def _decides(state: SymbolState, trade: Trade) -> bool:
    """Whether this trade, or one before it, was made while the feed of its symbol was live."""
    if state.lost_ms is not None or state.live_since_ms is None:
        return False
    return _newest_ms(state, trade) >= state.live_since_ms


def _newest_ms(state: SymbolState, trade: Trade) -> int:
    last_ms = state.last_trade_ms
    return trade.time_ms if last_ms is None else max(trade.time_ms, last_ms)


def _oldest_ms(state: SymbolState, trade: Trade) -> int:
    last_ms = state.last_trade_ms
    return trade.time_ms if last_ms is None else min(trade.time_ms, last_ms)


def _weigh_doubt(state: SymbolState, trade: Trade, findings: Findings) -> None:
    """Let a trade after a loss, or after the start, tell whether any before it was missed.

    A trade made under the live feed decides. One made before tells about the time before it, and
    leaves the rest to the next one.
    """
    resume_id = state.resume_id
    watched = (
        state.lost_ms is None
        and state.live_since_ms is not None
        and state.last_trade_ms is not None
        and state.last_trade_ms >= state.live_since_ms
    )
    if resume_id is not None and (trade.id == resume_id or watched):
        if _decides(state, trade):
            _prove(state, findings)
        if trade.id > resume_id:
            _open_gap(state, resume_id, trade, findings)
        return
    _give_up_doubt(state)
    state.trusted_since_ms = trade.time_ms
    if trade.time_ms >= state.minute.end_ms:  # flat so far, at a price that nobody knows
        state.missing.add(state.minute.open_ms, MINUTE.floor(trade.time_ms) - MINUTE_MS)
    if resume_id is not None:
        _keep_gaps(state, [*state.gaps, Gap(resume_id, trade.id, None, None, trade.time_ms)])
        text = f"missing aggregates: {trade.id - resume_id}, while the feed was down"
        findings.events.append(Event(trade.time_ms, "gap", state.symbol, text))


def _prove(state: SymbolState, findings: Findings) -> None:
    """Clear what was suspect for want of proof: nothing was missed since the last loss."""
    if state.trusted_since_ms is not None and state.live_since_ms is not None:
        state.live_since_ms = min(state.live_since_ms, state.trusted_since_ms)
    live_since_ms = state.live_since_ms
    assert live_since_ms is not None, "only a trade under a live feed proves"
    proven, state.doubtful = state.doubtful, Spans()
    for first_ms, last_ms in proven:
        whole_ms = max(first_ms, MINUTE.floor(live_since_ms + MINUTE_MS - 1))
        if first_ms < whole_ms:
            state.missing.add(first_ms, min(last_ms, whole_ms - MINUTE_MS))
        findings.clear(whole_ms, last_ms)


def _give_up_doubt(state: SymbolState) -> None:
    """Leave to repair what no trade can prove any more."""
    for first_ms, last_ms in state.doubtful:
        state.missing.add(first_ms, last_ms)
    state.doubtful = Spans()


def _open_gap(state: SymbolState, first_id: int, trade: Trade, findings: Findings) -> None:
    """Note that the ids from `first_id` up to this trade's were not seen under a live feed."""
    if trade.id - first_id > JUMP_MAX:
        _renumber(state, trade, findings)
        return
    from_ms, to_ms = _oldest_ms(state, trade), _newest_ms(state, trade)
    _keep_gaps(state, [*state.gaps, Gap(first_id, trade.id, from_ms, to_ms, to_ms)])
    findings.doubt(MINUTE.floor(from_ms), MINUTE.floor(to_ms))
    text = f"missing aggregates: {trade.id - first_id}"
    findings.events.append(Event(trade.time_ms, "gap", state.symbol, text))


def _keep_gaps(state: SymbolState, gaps: list[Gap]) -> None:
    """Remember the newest gaps; leave the minutes of older ones to repair."""
    for gap in gaps[:-GAPS_MAX]:
        if span := gap.minutes():
            state.missing.add(*span)
    state.gaps = gaps[-GAPS_MAX:]


def _renumber(state: SymbolState, trade: Trade, findings: Findings) -> None:
    """Start over from a trade whose id cannot be compared with the ids before it."""
    _give_up_doubt(state)
    state.trusted_since_ms = state.renumbered_ms = trade.time_ms
    from_ms, to_ms = _oldest_ms(state, trade), _newest_ms(state, trade)
    miss(state, MINUTE.floor(from_ms), MINUTE.floor(to_ms), findings)
    expected = state.resume_id if state.next_id is None else state.next_id
    text = f"the numbering broke: {trade.id} instead of {expected}"
    findings.events.append(Event(trade.time_ms, "gap", state.symbol, text))


def _fill_gap(state: SymbolState, trade: Trade, findings: Findings) -> bool:
    """Take an older id out of the gap it belongs to. False where it is in none."""
    gap = next((gap for gap in state.gaps if gap.first_id <= trade.id < gap.end_id), None)
    if gap is None or trade.time_ms > gap.before_ms + DISORDER_MS_MAX:
        return False  # what was made after the gap's end is not of it: the ids begin anew
    if gap.from_ms is not None and trade.time_ms < gap.from_ms - DISORDER_MS_MAX:
        return False  # nor what was made before it began: its time is wrong
    open_ms = MINUTE.floor(trade.time_ms)
    if open_ms < state.minute.open_ms and all(held.open_ms != open_ms for held in state.held):
        _fill_with_what_is_not_held(state, gap, open_ms, findings)
    at_ms = None
    if gap.from_ms is not None and gap.to_ms is not None:
        at_ms = min(max(trade.time_ms, gap.from_ms), gap.to_ms)
    lower = Gap(gap.first_id, trade.id, gap.from_ms, at_ms, trade.time_ms)
    upper = Gap(trade.id + 1, gap.end_id, at_ms, gap.to_ms, gap.before_ms)
    pieces = [piece for piece in (lower, upper) if piece.first_id < piece.end_id]
    index = state.gaps.index(gap)
    _keep_gaps(state, [*state.gaps[:index], *pieces, *state.gaps[index + 1 :]])
    if span := gap.minutes():
        findings.clear(*span)
    return True


def _fill_with_what_is_not_held(
    state: SymbolState, gap: Gap, open_ms: int, findings: Findings
) -> None:
    """Leave to repair what a trade would have changed that came too late for its minute."""
    if state.suspects.holds(open_ms):
        # This trade will not get into its bar, nor its price into the flat ones after.
        last_ms = open_ms if gap.to_ms is None else MINUTE.floor(gap.to_ms) - MINUTE_MS
        state.missing.add(open_ms, max(open_ms, last_ms))
    elif gap.to_ms is None and state.live_since_ms is not None and open_ms >= state.live_since_ms:
        miss(state, open_ms, open_ms, findings)


# -- Liveness --------------------------------------------------------------------------------------


def feed_live(shard: ShardState, symbols: Iterable[str], since_ms: int) -> None:
    """From `since_ms` on, the feed of these symbols is provably alive."""
    symbols = list(symbols)
    shard.settle(symbols)
    for symbol in symbols:
        state = shard.symbols.get(symbol)
        if state is None:
            continue
        if state.live_since_ms is None or state.lost_ms is not None:
            state.live_since_ms = since_ms
            state.lost_ms = None


def feed_lost(state: SymbolState, lost_ms: int, findings: Findings) -> None:
    """Nothing after `lost_ms` is certain for a symbol until its feed is live again."""
    if state.live_since_ms is None:
        return
    state.lost_ms = lost_ms if state.lost_ms is None else min(state.lost_ms, lost_ms)
    if not state.in_doubt:
        state.resume_id, state.next_id = state.next_id, None
        state.trusted_since_ms = state.live_since_ms
    first_ms = MINUTE.floor(lost_ms)
    if first_ms <= state.last_sealed_ms:
        state.doubtful.add(first_ms, state.last_sealed_ms)
        findings.doubt(first_ms, state.last_sealed_ms)


# -- The verdict on a minute -----------------------------------------------------------------------


def judge(state: SymbolState, bar: Bar) -> Source:
    """Decide whether a minute can be vouched for, at the moment when it is sealed."""
    if unproven(state, bar):
        (state.doubtful if state.in_doubt else state.missing).add(bar.open_ms, bar.open_ms)
        return Source.SUSPECT
    if incomplete(state, bar):
        return Source.SUSPECT
    return Source.TRADES if bar.count else Source.FLAT


def judge_quiet(state: SymbolState, until_ms: int) -> tuple[int, Source] | None:
    """Judge the coming minutes together, as far as all of them are empty and judged alike.

    Returns the end of the last of them, and what they are: the running minute and those after it up
    to `until_ms`. None where the running minute is not empty, or has to be judged by itself.
    """
    bar = state.minute
    if bar.count:
        return None
    end_ms = min([until_ms, *(open_ms for open_ms in state.ahead if open_ms > bar.open_ms)])
    live_since_ms, lost_ms = state.live_since_ms, state.lost_ms
    if unproven(state, bar):
        is_lost = lost_ms is not None and bar.end_ms > lost_ms
        if live_since_ms is not None and bar.open_ms < live_since_ms and not is_lost:
            end_ms = min(end_ms, MINUTE.floor(live_since_ms + MINUTE_MS - 1))
        spans = state.doubtful if state.in_doubt else state.missing
        spans.add(bar.open_ms, end_ms - MINUTE_MS)
        return end_ms, Source.SUSPECT
    if incomplete(state, bar):
        return None
    if lost_ms is not None:
        end_ms = min(end_ms, MINUTE.floor(lost_ms))
    owed = [span for span in (*state.missing, *(gap.minutes() for gap in state.gaps)) if span]
    end_ms = min([end_ms, *(first for first, last in owed if last > bar.open_ms)])
    return (end_ms, Source.FLAT) if end_ms > bar.open_ms else None


def unproven(state: SymbolState, bar: Bar) -> bool:
    """Whether nobody watched all of a minute, or its flat price is that of before a loss."""
    live_since_ms = state.live_since_ms
    if live_since_ms is None or bar.open_ms < live_since_ms:
        return True
    if state.lost_ms is not None and bar.end_ms > state.lost_ms:
        return True
    if bar.count or not state.in_doubt:
        return False
    if state.last_trade_ms is not None and state.last_trade_ms >= live_since_ms:
        return False
    return state.official_ms is None or state.official_ms + MINUTE_MS < live_since_ms


def incomplete(state: SymbolState, bar: Bar) -> bool:
    """Whether ids say that trades of a minute are missing."""
    if state.missing and state.missing.holds(bar.open_ms):
        return True
    return any(gap.touches(bar) for gap in state.gaps)
