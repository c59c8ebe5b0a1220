"""Which of the clocks is believed: the exchange's time, held against its witnesses.

Theory of operation
-------------------
There are four witnesses, and none is believed alone:

- *the local clock*, one that goes on through a suspend. It says how much time has passed, not what
  time it is;
- *samples*: what the exchange's REST answers, each with the bound of its error;
- *event times* of live streams, which are late by some delay and never early;
- *the wall clock* of this machine, which says what time it is, as far as somebody has set it.

Exchange time is the local clock plus an *offset*. A sample that agrees with the offset, within the
error of both, confirms it, and makes it better where the sample is good. The error grows with age
by the drift that a poor crystal may have.

A sample that contradicts is *held*: it changes nothing. The offset follows it, as a *step*, once a
second witness says the same: the wall clock has moved by as much since the offset was confirmed
last (so it was the local clock that stood still), or several samples, spread over time, agree with
each other, and the event times of most streams have moved with them. So a lone jump of the samples
passes by, and so does a stream that lies about the year. That event times *could* agree is not
enough: they may be seconds late, and would agree with every step of seconds. Only where samples say
the same for ten minutes is that believed: the streams may have become quicker meanwhile.

At the start nothing is known yet. The first sample is *sure* once the wall clock or the event times
agree with it, or many samples spread over most of a minute do while no stream says otherwise.
Until then its time is good for nothing but to ask for more.

All times are in ms: `local_ms` by the local clock, the others since the epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

DRIFT_PPM: Final = 200
"""How fast a poor crystal runs away from true time: the growth of an offset's error."""

TOLERANCE_MS: Final = 50.0
"""The exchange is many machines, whose clocks differ: which is no step. Half the shortest grace."""

SPREAD_MS: Final = 5_000
SPREAD_SAMPLES: Final = 3
"""Samples that agree on a step have to be so many, over so much time, beside the event times."""

STANDING_MS: Final = 600_000
"""Samples that agree for so long are followed where event times could agree, and have not moved."""

ALONE_MS: Final = 45_000
ALONE_SAMPLES: Final = 5
"""At the start, where no stream says anything and the wall clock does not agree."""

WALL_MS: Final = 2_000
"""How far the wall clock of a machine may be off that is kept right at all."""

EVENT_AGE_MS: Final = 10_000
"""Event times older than this say nothing of now."""

EVENT_LATE_MS: Final = 5_000
"""Event times of a live stream are not later than this."""

EVENT_EARLY_MS: Final = 1_000
"""Nor are they earlier than now, but for what the exchange's own clocks differ by."""

EVENTS_KEPT: Final = 9
"""Of each stream: the middle one is believed, so that a single wrong frame changes nothing."""

STREAMS_MAX: Final = 64
"""Streams that are remembered. There are a few; twins and those made anew have other names."""

HELD_MAX: Final = 64
"""Samples that wait for agreement; of more, the oldest one and the newest ones do as well."""


class Verdict(Enum):
    """What became of a sample."""

    AGREES = "agrees"
    """It confirms what was known, or is the first one."""
    HELD = "held"
    """It contradicts, and nobody else says so."""
    STEPPED = "stepped"
    """It contradicted what was known, and is believed now."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One witness's word on the offset, and when it was given."""

    at_ms: float
    """By the local clock."""
    offset_ms: float
    """The exchange's time less the local clock's."""
    error_ms: float
    """The offset is wrong by this at most, if the exchange's word is good."""

    def error_at(self, local_ms: float) -> float:
        """Return the error with what drift may have added since."""
        return self.error_ms + abs(local_ms - self.at_ms) * DRIFT_PPM / 1_000_000

    def agrees(self, other: Sample) -> bool:
        """Whether both can be true."""
        allowed_ms = self.error_at(other.at_ms) + other.error_ms + TOLERANCE_MS
        return abs(self.offset_ms - other.offset_ms) <= allowed_ms


@dataclass(slots=True)
class ExchangeTime:
    """See the module's theory of operation. Knows nothing before the first sample."""

    known: Sample | None = None
    """The offset in force."""
    is_sure: bool = False
    """Whether a second witness has agreed with it. Once that is so it stays so."""
    steps: int = 0
    """How often a step was followed."""
    held: list[Sample] = field(default_factory=list)
    """Samples that contradict the offset in force and agree with each other, oldest first."""
    _wall_offset_ms: float | None = None
    """Wall clock less local clock, when the offset was confirmed last."""
    _events_offset_ms: float | None = None
    """What the streams said of the offset when a sample confirmed it last."""
    _first: Sample | None = None
    """While it is not sure, the oldest of the samples that agree with each other; their number."""
    _agreeing: int = 0
    _events: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)
    """By stream, its newest event times: when they came, and what they say of the offset."""

    # -- Reading -------------------------------------------------------------------------------

    @property
    def offset_ms(self) -> float:
        """What is added to the local clock."""
        assert self.known is not None, "a sample comes first"
        return self.known.offset_ms

    def error_ms(self, local_ms: float) -> float:
        """Return the bound of the error of the time at a moment."""
        assert self.known is not None, "a sample comes first"
        return self.known.error_at(local_ms)

    @property
    def is_doubted(self) -> bool:
        """Whether there is something to be cleared up by more samples."""
        return bool(self.held) or not self.is_sure

    def streams_disagree(self, local_ms: float) -> bool:
        """Whether most streams tell another time than the one in force."""
        return self.known is not None and self._streams_say(self.known, local_ms) is False

    # -- Witnesses -----------------------------------------------------------------------------

    def take_sample(self, sample: Sample, *, wall_ms: float | None = None) -> Verdict:
        """Judge a sample, with the wall clock's time of the same moment where there is one."""
        wall_offset_ms = None if wall_ms is None else wall_ms - sample.at_ms
        if not self.is_sure:
            return self._begin(sample, wall_offset_ms)
        known = self.known
        assert known is not None, "what is sure is known"
        if known.agrees(sample):
            self.held.clear()
            if sample.error_ms <= known.error_at(sample.at_ms):
                self.known = sample
            self._wall_offset_ms = wall_offset_ms
            self._note_events(sample.at_ms)
            return Verdict.AGREES
        self._hold(sample)
        if self._wall_moved(sample, wall_offset_ms) or self._is_corroborated(sample):
            self.known = sample
            self._wall_offset_ms = wall_offset_ms
            self.held.clear()
            self._note_events(sample.at_ms)
            self.steps += 1
            return Verdict.STEPPED
        return Verdict.HELD

    def take_event(self, stream: str, local_ms: float, event_ms: float) -> None:
        """Note an event time of a stream, received now."""
        events = self._events.get(stream)
        if events is None:
            if len(self._events) >= STREAMS_MAX:
                oldest = min(self._events, key=lambda name: self._events[name][-1][0])
                del self._events[oldest]
            events = self._events[stream] = deque(maxlen=EVENTS_KEPT)
        events.append((local_ms, event_ms - local_ms))
        if not self.is_sure and self.known is not None and self._streams_say(self.known, local_ms):
            self.is_sure = True

    # -- Judging -------------------------------------------------------------------------------

    def _begin(self, sample: Sample, wall_offset_ms: float | None) -> Verdict:
        """Take a sample while nothing is sure: the newest one holds."""
        if self._first is None or not self._first.agrees(sample):
            self._first, self._agreeing = sample, 0
        self._agreeing += 1
        self.known = sample
        self._wall_offset_ms = wall_offset_ms
        self._note_events(sample.at_ms)
        streams = self._streams_say(sample, sample.at_ms)
        wall = (
            wall_offset_ms is not None
            and abs(sample.offset_ms - wall_offset_ms) <= WALL_MS + sample.error_ms
        )
        alone = self._agreeing >= ALONE_SAMPLES and sample.at_ms - self._first.at_ms >= ALONE_MS
        self.is_sure = wall or streams is True or (streams is None and alone)
        return Verdict.AGREES if self.is_sure else Verdict.HELD

    def _hold(self, sample: Sample) -> None:
        """Keep a sample that contradicts, with those before it that say the same."""
        self.held = [each for each in self.held if each.agrees(sample)]
        self.held.append(sample)
        if len(self.held) > HELD_MAX:
            del self.held[1]

    def _wall_moved(self, sample: Sample, wall_offset_ms: float | None) -> bool:
        """Whether the wall clock has moved against the local one as the exchange's has."""
        known = self.known
        if known is None or wall_offset_ms is None or self._wall_offset_ms is None:
            return False
        moved_ms = wall_offset_ms - self._wall_offset_ms
        stepped_ms = sample.offset_ms - known.offset_ms
        return abs(moved_ms) > WALL_MS and abs(moved_ms - stepped_ms) <= WALL_MS

    def _is_corroborated(self, sample: Sample) -> bool:
        """Whether samples spread over time say the same, and the streams with them."""
        said_ms = sample.at_ms - self.held[0].at_ms
        return (
            len(self.held) >= SPREAD_SAMPLES
            and said_ms >= SPREAD_MS
            and self._streams_say(sample, sample.at_ms) is True
            and (said_ms >= STANDING_MS or self._events_moved(sample))
        )

    def _events_moved(self, sample: Sample) -> bool:
        """Whether the event times have moved as a step would have them, rather than not at all."""
        before_ms, now_ms = self._events_offset_ms, self._middle_of_events(sample.at_ms)
        if self.known is None or before_ms is None or now_ms is None:
            return True
        moved_ms, stepped_ms = now_ms - before_ms, sample.offset_ms - self.known.offset_ms
        return abs(moved_ms - stepped_ms) < abs(moved_ms)

    def _note_events(self, local_ms: float) -> None:
        """Keep what the streams say now; what they said before, where they say nothing."""
        now_ms = self._middle_of_events(local_ms)
        if now_ms is not None:
            self._events_offset_ms = now_ms

    def _middle_of_events(self, local_ms: float) -> float | None:
        """Return the middle of what the streams say of the offset."""
        middles = sorted(recent[len(recent) // 2] for recent in self._recent_events(local_ms))
        return middles[len(middles) // 2] if middles else None

    def _recent_events(self, local_ms: float) -> Iterator[list[float]]:
        """Return what each stream that is heard says of the offset, in order of size."""
        for events in self._events.values():
            recent = [offset_ms for at_ms, offset_ms in events if local_ms - at_ms <= EVENT_AGE_MS]
            if recent:
                yield sorted(recent)

    def _streams_say(self, sample: Sample, local_ms: float) -> bool | None:
        """Whether most streams agree with an offset. None where no stream has said anything."""
        early_ms = EVENT_EARLY_MS + sample.error_at(local_ms)
        for_it = against = 0
        for recent in self._recent_events(local_ms):
            late_ms = sample.offset_ms - recent[len(recent) // 2]
            if -early_ms <= late_ms <= EVENT_LATE_MS + early_ms:
                for_it += 1
            else:
                against += 1
        if not for_it + against:
            return None
        return for_it > against
