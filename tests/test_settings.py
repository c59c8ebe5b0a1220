"""Settings: their order, their strictness, and errors that name what is wrong."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klagg_trio.core.errors import ConfigurationError
from klagg_trio.core.intervals import DEFAULT_INTERVALS, INTERVALS
from klagg_trio.settings import (
    RULES,
    Settings,
    as_toml,
    is_loopback,
    load,
    parse_duration_s,
    parse_since,
    shown_values,
)

NOWHERE = Path("/nonexistent/klagg")


def load_from(tmp_path, *, flags=None, env=None, here=None, user=None):
    """Load with a ./klagg.toml and a user file of these texts."""
    user_file = tmp_path / "user.toml"
    if user is not None:
        user_file.write_text(user)
    if here is not None:
        (tmp_path / "klagg.toml").write_text(here)
    return load(flags or {}, env or {}, tmp_path, user_file=user_file)


def refusal(tmp_path, **sources):
    """Return the text of the error that loading from these sources gives."""
    with pytest.raises(ConfigurationError) as caught:
        load_from(tmp_path, **sources)
    return str(caught.value)


def test_defaults_where_nothing_is_set(tmp_path):
    """Without any source the defaults hold, and say so."""
    loaded = load_from(tmp_path)
    assert loaded.settings == Settings()
    assert set(loaded.origin.values()) == {"default"}


def test_every_setting_has_a_rule():
    """The table of units, reasons and bounds covers exactly the settings, in their order."""
    assert set(RULES) == {field.name for field in dataclasses.fields(Settings)}


def test_defaults_obey_their_rules(tmp_path):
    """Every default passes the check that a given value has to pass."""
    shown = shown_values(Settings())
    assert load_from(tmp_path, flags=shown).settings == Settings()


def test_stronger_sources_win(tmp_path):
    """Flags beat variables, these ./klagg.toml, that the user's file; the origin is told."""
    sources = {
        "user": "shards = 1\nread_pause_ms = 1\ninbox_max = 100\nsince = '1d'\n",
        "here": "shards = 2\nread_pause_ms = 2\ninbox_max = 200\n",
        "env": {"KLAGG_SHARDS": "3", "KLAGG_READ_PAUSE_MS": "3", "HOME": "/"},
        "flags": {"shards": "4", "data_dir": None},
    }
    loaded = load_from(tmp_path, **sources)
    settings = loaded.settings
    assert (settings.shards, settings.read_pause_ms, settings.inbox_max) == (4, 3, 200)
    assert loaded.origin["shards"] == "--shards"
    assert loaded.origin["read_pause_ms"] == "KLAGG_READ_PAUSE_MS"
    assert loaded.origin["inbox_max"] == str(tmp_path / "klagg.toml")
    assert loaded.origin["since"] == str(tmp_path / "user.toml")
    assert loaded.origin["data_dir"] == "default"


def test_all_intervals_by_one_word(tmp_path):
    """`all` stands for the exchange's fifteen intervals; names come out shortest first, once."""
    assert load_from(tmp_path, flags={"intervals": "all"}).settings.intervals == tuple(INTERVALS)
    chosen = load_from(tmp_path, here='intervals = ["1h", "1m", "1h"]').settings.intervals
    assert chosen == ("1m", "1h")
    assert load_from(tmp_path, env={"KLAGG_INTERVALS": "1m,5m"}).settings.intervals == ("1m", "5m")
    assert Settings().intervals == DEFAULT_INTERVALS


def test_symbols_from_text_and_list(tmp_path):
    """Symbols may be separated by commas or spaces, in any script; repeats fall out."""
    settings = load_from(tmp_path, flags={"symbols": "BTCUSDT, 币安人生USDT BTCUSDT,"}).settings
    assert settings.symbols == ("BTCUSDT", "币安人生USDT")
    assert load_from(tmp_path, env={"KLAGG_SYMBOLS": ""}).settings.symbols == ()


@pytest.mark.parametrize(
    ("sources", "parts"),
    [
        ({"env": {"KLAGG_SHARD": "3"}}, ["KLAGG_SHARD", "did you mean shards?"]),
        ({"here": "shrads = 3"}, ["'shrads'", "klagg.toml", "did you mean shards?"]),
        ({"user": "zzzzzz = 3"}, ["'zzzzzz'", "user.toml", "klagg config show"]),
        ({"here": "[klagg]\nshards = 3"}, ["unknown setting 'klagg'"]),
    ],
)
def test_unknown_settings_are_named(tmp_path, sources, parts):
    """An unknown setting is an error with its name, its source and the nearest known name."""
    text = refusal(tmp_path, **sources)
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    "line",
    [
        "shards = '4'",
        "shards = 4.0",
        "shards = true",
        "silence_limit_s = '10'",
        "silence_limit_s = nan",
        "silence_limit_s = true",
        "data_dir = 3",
        "data_dir = ''",
        "rest_url = 3",
        "symbols = [1]",
        "symbols = ['']",
        "intervals = 1",
        "time_probe = 'wget'",
        "log_file = 3",
        "since = 1",
        "since = 2026-01-31",
    ],
)
def test_files_are_not_coerced(tmp_path, line):
    """A value of the wrong type in a file is refused with its name, never converted."""
    assert line.split()[0] in refusal(tmp_path, here=line)


@pytest.mark.parametrize("text", ["", "x", "1e3", " 1", "1_0", "４", "+1", "0x1", "1.0", "9" * 30])
def test_numbers_in_text_are_plain(tmp_path, text):
    """A whole number in a flag or variable is plain digits, nothing else."""
    assert "KLAGG_SHARDS" in refusal(tmp_path, env={"KLAGG_SHARDS": text})


@pytest.mark.parametrize("text", ["", "nan", "inf", "1e3", "1.", ".5", "１"])
def test_fractions_in_text_are_plain(tmp_path, text):
    """A number in a flag or variable is plain digits with at most one point."""
    assert "--weight-share" in refusal(tmp_path, flags={"weight_share": text})


def test_bounds_are_told(tmp_path):
    """A number out of its bounds is refused with the bounds and the unit."""
    text = refusal(tmp_path, flags={"shards": "65"})
    assert "--shards" in text
    assert "1 to 64" in text


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("rest_url", "http://fapi.binance.com"),
        ("ws_url", "ws://fstream.binance.com/market"),
        ("rest_url", "http://127.0.0.1.evil.example"),
        ("rest_url", "ftp://127.0.0.1"),
        ("rest_url", "fapi.binance.com"),
        ("rest_url", "https://"),
        ("rest_url", "https://user:word@fapi.binance.com"),
        ("rest_url", "https://fapi.binance.com/?a=b"),
        ("rest_url", "http://127.0.0.1:99999"),
        ("ws_url", "https://fstream.binance.com"),
    ],
)
def test_unsafe_urls_are_refused(tmp_path, name, url):
    """Plain text is for loopback hosts only, and a URL is a host, a port and a path."""
    assert "--" + name.replace("_", "-") in refusal(tmp_path, flags={name: url})


def test_loopback_urls_may_be_plain(tmp_path):
    """Loopback hosts may be talked to in plain text; a closing slash does not matter."""
    flags = {"rest_url": "http://127.0.0.1:8780/", "ws_url": "ws://[::1]:8781/market"}
    settings = load_from(tmp_path, flags=flags).settings
    assert settings.rest_url == "http://127.0.0.1:8780"
    assert settings.ws_url == "ws://[::1]:8781/market"
    assert is_loopback("localhost")
    assert not is_loopback("localhost.example")


def test_settings_that_contradict_each_other(tmp_path):
    """A floor above its ceiling is refused, naming both."""
    text = refusal(tmp_path, flags={"grace_floor_ms": "3000"})
    assert "grace_floor_ms" in text
    assert "grace_ceiling_ms" in text


def test_intervals_without_minutes_are_refused(tmp_path):
    """The minute has to be among the intervals, and an unknown one is named."""
    assert "1m" in refusal(tmp_path, flags={"intervals": "1h"})
    assert "'7m'" in refusal(tmp_path, flags={"intervals": "1m,7m"})


@pytest.mark.parametrize("content", ["shards = ", "shards 4", "\x00", "a = 1\na = 2"])
def test_broken_files_are_told(tmp_path, content):
    """A file that is not TOML is an error with its name."""
    assert "klagg.toml" in refusal(tmp_path, here=content)


def test_file_that_is_not_text(tmp_path):
    """Bytes that are no UTF-8 are an error with the file's name, not a crash."""
    (tmp_path / "klagg.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"klagg\.toml"):
        load({}, {}, tmp_path, user_file=NOWHERE)


def test_unreadable_file(tmp_path):
    """A settings file that cannot be read is an error, not a default."""
    (tmp_path / "klagg.toml").mkdir()
    with pytest.raises(ConfigurationError, match=r"klagg\.toml"):
        load({}, {}, tmp_path, user_file=NOWHERE)


def test_example_file_is_current(tmp_path):
    """docs/klagg.example.toml is what `klagg config show --toml` prints for the defaults."""
    example = Path(__file__).parent.parent / "docs" / "klagg.example.toml"
    assert example.read_text() == as_toml(load_from(tmp_path))


def test_toml_loads_as_what_it_shows(tmp_path):
    """A klagg.toml written from settings gives them back, with and without its comment marks."""
    flags = {"symbols": "BTCUSDT,币安人生USDT", "log_file": 'a "b"\\c', "shards": "3"}
    shown = as_toml(load_from(tmp_path, flags=flags))
    assert load_from(tmp_path, here=shown).settings == load_from(tmp_path, flags=flags).settings
    bare = "\n".join(line.removeprefix("# ") for line in shown.splitlines() if " = " in line)
    assert load_from(tmp_path, here=bare).settings == load_from(tmp_path, flags=flags).settings


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("12h", 43_200), ("7d", 604_800), ("0d", 0)]
)
def test_durations(text, seconds):
    """A duration is a whole number and a unit."""
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "1.5h", "5M", "5 m", "５m", "99999w"])
def test_durations_that_are_none(text):
    """Anything else is refused."""
    with pytest.raises(ValueError):
        parse_duration_s(text)


def test_since():
    """`since` is a duration back from now, or a day by its date in UTC."""
    assert parse_since("12h") == ("ago", 43_200_000)
    assert parse_since("2026-01-31") == ("at", 1_769_817_600_000)
    for text in ("2026-02-30", "2026-1-1", "yesterday"):
        with pytest.raises(ValueError):
            parse_since(text)


@given(st.dictionaries(st.sampled_from(sorted(RULES)), st.text(max_size=8), max_size=3))
def test_any_text_is_taken_or_refused(variables):
    """Whatever the variables hold, loading gives settings or a ConfigurationError, nothing else."""
    env = {f"KLAGG_{name.upper()}": text for name, text in variables.items()}
    try:
        loaded = load({}, env, NOWHERE, user_file=NOWHERE)
    except ConfigurationError:
        return
    assert isinstance(loaded.settings, Settings)
