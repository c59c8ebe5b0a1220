"""The settings: one frozen record, where each value came from, and one table of what each means.

Order, strongest first: flags, KLAGG_* variables, ./klagg.toml, the user's own file, defaults.
Nothing is coerced silently: text in a file is never taken for a number, an unknown name is an
error that gives the nearest known one. Only flags and variables, which are text by nature, are
parsed, and strictly.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from klagg_trio.core.errors import ConfigurationError
from klagg_trio.core.intervals import DEFAULT_INTERVALS, INTERVALS, select

if TYPE_CHECKING:
    import cattrs

ENVIRONMENT_PREFIX: Final = "KLAGG_"
FILE_NAME: Final = "klagg.toml"

ALL_SYMBOLS: Final = "all"
"""Among the symbols: every contract of the kept kinds, whatever was asked for before."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting. What each means, its unit and its bounds: `RULES`."""

    data_dir: Path = Path("data")
    rest_url: str = "https://fapi.binance.com"
    ws_url: str = "wss://fstream.binance.com/market"
    symbols: tuple[str, ...] = ()
    contracts: tuple[str, ...] = ("PERPETUAL",)
    quotes: tuple[str, ...] = ("USDT",)
    intervals: tuple[str, ...] = DEFAULT_INTERVALS
    since: str = "1d"
    shards: int = 4
    symbols_per_connection: int = 200
    parallel_feeds: int = 1
    read_pause_ms: int = 50
    silence_limit_s: float = 10.0
    stale_limit_s: float = 3.0
    symbol_silence_s: float = 15.0
    rotate_after_s: float = 82_800.0
    grace_floor_ms: int = 100
    grace_ceiling_ms: int = 2_000
    offset_refresh_s: float = 180.0
    offset_valid_s: float = 1_800.0
    open_refresh_s: float = 5.0
    snapshot_every_s: float = 300.0
    suspend_limit_s: float = 2.0
    audit_every_s: float = 600.0
    weight_share: float = 0.8
    inbox_max: int = 1_024
    writer_queue_max: int = 256
    time_probe: Literal["asks", "rest"] = "asks"
    log_file: Path | None = None

    @property
    def named_symbols(self) -> tuple[str, ...]:
        """The symbols that are named; none where all are meant."""
        return () if ALL_SYMBOLS in self.symbols else self.symbols


@dataclass(frozen=True, slots=True)
class Rule:
    """What one setting means: for `config show`, the reference and the check of its bounds."""

    unit: str
    reason: str
    minimum: float | None = None
    maximum: float | None = None

    @property
    def bounds(self) -> str:
        """The bounds as people read them; empty where there are none."""
        if self.minimum is None or self.maximum is None:
            return ""
        return f"{self.minimum:g} to {self.maximum:g}"


RULES: Final[dict[str, Rule]] = {
    "data_dir": Rule("path", "where the database, the start snapshot and the lock live"),
    "rest_url": Rule("URL", "the exchange's REST root; http only for loopback hosts"),
    "ws_url": Rule(
        "URL",
        "the exchange's market stream root (/stream is added); ws only for loopback hosts",
    ),
    "symbols": Rule(
        "names",
        "the contracts to keep; none named: what was asked for before, at first every contract of "
        "the kinds below; or: all",
    ),
    "contracts": Rule("names", "contract types to keep, such as PERPETUAL and TRADIFI_PERPETUAL"),
    "quotes": Rule("names", "quote assets to keep, such as USDT and USDC, or: *"),
    "intervals": Rule("names", "bar lengths to keep, 1m among them, or: all"),
    "since": Rule(
        "duration or date",
        "how far back `backfill` goes, like 12h, 7d, 4w or 2026-01-31; 0d: the start state only",
    ),
    "shards": Rule("count", "workers that share the symbols", 1, 64),
    "symbols_per_connection": Rule(
        "count", "aggTrade streams on one connection; the exchange allows 1024 streams", 1, 1_000
    ),
    "parallel_feeds": Rule(
        "count", "connections that carry the same symbols; the first arrival wins", 1, 3
    ),
    "read_pause_ms": Rule(
        "ms",
        "a connection is read once in this time, so that chunks grow and wake-ups fall",
        0,
        1_000,
    ),
    "silence_limit_s": Rule(
        "s", "a connection without data for this long is taken for dead", 1, 300
    ),
    "stale_limit_s": Rule(
        "s", "a connection that stays this far behind the exchange's time is replaced", 0.5, 600
    ),
    "symbol_silence_s": Rule(
        "s",
        "a symbol that trades by its ticker but not on its feed for this long is checked by REST",
        5,
        3_600,
    ),
    "rotate_after_s": Rule(
        "s", "age at which a connection is replaced; the exchange cuts it at 24 h", 60, 86_000
    ),
    "grace_floor_ms": Rule(
        "ms", "shortest wait after a minute's end; aggregates span 100 ms", 0, 10_000
    ),
    "grace_ceiling_ms": Rule("ms", "longest wait after a minute's end", 0, 30_000),
    "offset_refresh_s": Rule("s", "time between two samples of the exchange's time", 1, 3_600),
    "offset_valid_s": Rule(
        "s", "age past which an unconfirmed offset stops the program", 10, 86_400
    ),
    "open_refresh_s": Rule("s", "time between two refreshes of `open_klines`", 0.5, 3_600),
    "snapshot_every_s": Rule("s", "time between two start snapshots", 5, 86_400),
    "suspend_limit_s": Rule(
        "s", "time that passed unwatched above which the clock and the feeds start anew", 1, 3_600
    ),
    "audit_every_s": Rule(
        "s", "time between two comparisons of a symbol's minutes with official ones", 60, 86_400
    ),
    "weight_share": Rule(
        "share", "part of the exchange's REST weight limit to stay below", 0.05, 0.95
    ),
    "inbox_max": Rule("messages", "cap of a shard's inbox; a full one slows the feed", 16, 65_536),
    "writer_queue_max": Rule(
        "messages", "cap of the writer's queue; a full one slows the workers", 16, 65_536
    ),
    "time_probe": Rule("asks or rest", "which HTTP client samples the exchange's time"),
    "log_file": Rule(
        "path", "where log lines go as well as to stderr, .1 at 10 MB; empty: nowhere"
    ),
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each name where its value came from."""

    settings: Settings
    origin: dict[str, str]


def load(
    flags: Mapping[str, Any],
    env: Mapping[str, str],
    cwd: Path,
    *,
    user_file: Path | None = None,
) -> Loaded:
    """Put the settings together from all their sources. A flag that is None was not given.

    Raises ConfigurationError for the first thing wrong, naming the setting and its source.
    """
    converter = _strict_converter()
    kinds = typing.get_type_hints(Settings)
    values: dict[str, Any] = {}
    origin = dict.fromkeys(kinds, "default")
    for source, raw in _sources(flags, env, cwd, user_file or user_config_file()):
        for name, (written_as, value) in raw.items():
            if name not in kinds:
                raise ConfigurationError(_unknown(name, written_as, source))
            label = f"{source}: {written_as}" if source else written_as
            values[name] = _structure(converter, kinds[name], name, value, label)
            origin[name] = source or written_as
    settings = Settings(**values)
    _check_together(settings)
    return Loaded(settings, origin)


def user_config_file() -> Path:
    """Return where the user's own settings are looked for."""
    import platformdirs

    return platformdirs.user_config_path("klagg") / FILE_NAME


# -- Sources ---------------------------------------------------------------------------------------

_Raw = dict[str, tuple[str, Any]]
"""By setting name: how the source writes that name, and the value."""


class _Text(str):
    """A value from a flag or a variable: text by nature, so it may be parsed."""

    __slots__ = ()


def _sources(
    flags: Mapping[str, Any], env: Mapping[str, str], cwd: Path, user_file: Path
) -> list[tuple[str, _Raw]]:
    """Return (file or nothing, values) of each source, weakest first."""
    return [
        (str(user_file), _read_file(user_file)),
        (str(cwd / FILE_NAME), _read_file(cwd / FILE_NAME)),
        (
            "",
            {
                name.removeprefix(ENVIRONMENT_PREFIX).lower(): (name, _Text(value))
                for name, value in env.items()
                if name.startswith(ENVIRONMENT_PREFIX)
            },
        ),
        (
            "",
            {
                name: (
                    "--" + name.replace("_", "-"),
                    _Text(value) if isinstance(value, str) else value,
                )
                for name, value in flags.items()
                if value is not None
            },
        ),
    ]


def _read_file(path: Path) -> _Raw:
    import tomllib

    try:
        # An editor may have put a byte order mark before the text.
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(
            f"settings file {path} cannot be read ({error.strerror}); mend it or remove it"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"settings file {path} is not TOML ({error}); mend that place"
        ) from error
    return {name: (name, value) for name, value in content.items()}


def _unknown(name: str, written_as: str, source: str) -> str:
    where = f" in {source}" if source else ""
    near = difflib.get_close_matches(name, RULES, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}?" if near else "see: klagg config show"
    return f"unknown setting {written_as!r}{where}; {advice}"


# -- Values ----------------------------------------------------------------------------------------


def _structure(
    converter: cattrs.Converter, kind: object, name: str, value: object, label: str
) -> object:
    """Return a value of the setting's own type and within its bounds."""
    try:
        structured = converter.structure(value, typing.cast(Any, kind))
        return _check(name, structured)
    except ValueError as error:
        raise ConfigurationError(f"{label}: {error}") from error


def _strict_converter() -> cattrs.Converter:
    """Return a converter that takes each type for what it is, and text only from text sources."""
    import cattrs

    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)
    converter.register_structure_hook(int, _whole)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook_func(lambda kind: kind == Path | None, _optional_path)
    converter.register_structure_hook_func(lambda kind: kind == tuple[str, ...], _names)
    converter.register_structure_hook_func(lambda kind: kind == Literal["asks", "rest"], _probe)
    return converter


def _whole(value: object, _: object) -> int:
    if isinstance(value, _Text) and re.fullmatch(r"-?[0-9]{1,18}", value):
        return int(value)
    if type(value) is int:
        return value
    raise ValueError(f"must be a whole number, not {_shown(value)}")


def _number(value: object, _: object) -> float:
    if isinstance(value, _Text) and re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", value):
        return float(value)
    if type(value) in (int, float) and math.isfinite(typing.cast(float, value)):
        return float(typing.cast(float, value))
    raise ValueError(f"must be a number, not {_shown(value)}")


def _text(value: object, _: object) -> str:
    if isinstance(value, str) and value:
        return str(value)
    raise ValueError(f"must be text, not {_shown(value)}")


def _path(value: object, _: object) -> Path:
    if isinstance(value, Path):
        return value
    if isinstance(value, str) and value and "\0" not in value:
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            raise ValueError(f"{_shown(value)} begins with a home that is not known") from error
    raise ValueError(f"must be a path, not {_shown(value)}")


def _optional_path(value: object, _: object) -> Path | None:
    return None if value is None or value == "" else _path(value, _)


def _names(value: object, _: object) -> tuple[str, ...]:
    """Take a list of names, or one text with commas or spaces between them."""
    if isinstance(value, str):
        return tuple(re.split(r"[\s,]+", value.strip(" \t\n,"))) if value.strip(" \t\n,") else ()
    if isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value):
        return tuple(value)
    raise ValueError(f"must be a list of names, not {_shown(value)}")


def _probe(value: object, _: object) -> str:
    if value in ("asks", "rest"):
        return str(value)
    raise ValueError(f"must be asks or rest, not {_shown(value)}")


def _shown(value: object) -> str:
    """Name a refused value without letting it flood the line."""
    shown = repr(str(value) if isinstance(value, _Text) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# -- Bounds ----------------------------------------------------------------------------------------


def _check(name: str, value: object) -> object:
    """Return the value, normalised; ValueError where it is out of its bounds or form."""
    rule = RULES[name]
    if isinstance(value, int | float) and rule.minimum is not None and rule.maximum is not None:
        if not rule.minimum <= value <= rule.maximum:
            raise ValueError(f"must be {rule.bounds} ({rule.unit}), not {value:g}")
    elif isinstance(value, tuple):
        return _all_intervals(value) if name == "intervals" else tuple(dict.fromkeys(value))
    elif name == "since":
        parse_since(str(value))
    elif name == "rest_url":
        return _checked_url(str(value), "https", "http")
    elif name == "ws_url":
        return _checked_url(str(value), "wss", "ws")
    return value


def _all_intervals(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the intervals named, shortest first. ValueError for an unknown one, or without 1m."""
    chosen = select(tuple(INTERVALS) if names == ("all",) else names)
    return tuple(interval.name for interval in chosen)


def _check_together(settings: Settings) -> None:
    for lower, upper in (
        ("grace_floor_ms", "grace_ceiling_ms"),
        ("offset_refresh_s", "offset_valid_s"),
    ):
        if getattr(settings, lower) > getattr(settings, upper):
            raise ConfigurationError(
                f"{lower} ({getattr(settings, lower):g}) is above {upper} "
                f"({getattr(settings, upper):g}); lower the one or raise the other"
            )


def _checked_url(url: str, secure: str, plain: str) -> str:
    """Return the URL without a closing slash. Plain text is for this machine only."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"{_shown(url)} is not a URL: {error}") from error
    if parts.scheme not in (secure, plain) or not host:
        raise ValueError(f"must be a URL like {secure}://host, not {_shown(url)}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"{_shown(url)} may hold a host, a port and a path, nothing else")
    if parts.scheme == plain and not is_loopback(host):
        raise ValueError(
            f"{plain}:// is for loopback hosts only, and {host} is none; use {secure}://"
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host name is this machine by its very form, without asking a name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION_S_MAX: Final = 20 * 366 * 86_400
"""No USD-M contract is older than 2019; longer durations are slips of the finger."""


def parse_duration_s(text: str) -> float:
    """Return the seconds of a duration like 90s, 5m, 12h, 7d or 4w. ValueError if it is none."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    if match is None:
        raise ValueError(f"must be a duration like 90s, 5m, 12h, 7d or 4w, not {_shown(text)}")
    seconds = int(match[1]) * _UNITS_S[match[2]]
    if seconds > _DURATION_S_MAX:
        raise ValueError(f"{_shown(text)} is longer than twenty years")
    return float(seconds)


def parse_since(text: str) -> tuple[Literal["ago", "at"], int]:
    """Return ("ago", milliseconds) for a duration, ("at", epoch ms) for a date. ValueError."""
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        import datetime

        try:
            day = datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)
        except ValueError as error:
            raise ValueError(f"{_shown(text)} is not a date: {error}") from error
        return "at", int(day.timestamp()) * 1_000
    try:
        return "ago", int(parse_duration_s(text) * 1_000)
    except ValueError as error:
        raise ValueError(
            f"must be a duration like 12h, 7d or 4w, or a date like 2026-01-31, not {_shown(text)}"
        ) from error


# -- Showing ---------------------------------------------------------------------------------------


def shown_values(settings: Settings) -> dict[str, str]:
    """Return every setting as text that a flag or a variable would take."""
    shown = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is None:
            shown[field.name] = ""
        elif isinstance(value, tuple):
            shown[field.name] = ",".join(value)
        elif isinstance(value, float):
            shown[field.name] = f"{value:g}"
        else:
            shown[field.name] = str(value)
    return shown


def as_toml(loaded: Loaded) -> str:
    """Return a klagg.toml of these settings; what is a default is written as a comment."""
    text = [
        "# Every setting of klagg. Take away the # of a line to change it.",
        "# Flags and KLAGG_* variables are stronger: see `klagg config show --origin`.",
    ]
    for name, rule in RULES.items():
        bounds = f", {rule.bounds}" if rule.bounds else ""
        mark = "# " if loaded.origin[name] == "default" else ""
        value = _as_toml(getattr(loaded.settings, name))
        text += ["", f"# {rule.reason} ({rule.unit}{bounds})", f"{mark}{name} = {value}"]
    return "\n".join(text) + "\n"


def _as_toml(value: object) -> str:
    import json

    if isinstance(value, tuple):
        return "[" + ", ".join(map(_as_toml, value)) + "]"
    if isinstance(value, int | float):
        return repr(value)
    # A JSON text is a TOML text, but for the escapes of characters that TOML wants written out.
    return json.dumps("" if value is None else str(value), ensure_ascii=False)
