"""The command line: commands and flags, the exit codes, and nothing that does work.

Every command's body imports what it needs when it runs, so that `klagg --help` loads click only.
stdout is data, stderr is messages; an error that a user can act on is one line.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import click

from klagg_trio import __version__, interrupt
from klagg_trio.commands import EXIT_INTERRUPTED, leaves
from klagg_trio.core.errors import KlaggError, StoreError
from klagg_trio.core.plain import plain

Command = TypeVar("Command", bound=Callable[..., Any])

COMPLAINT_LENGTH_MAX = 1_000
"""Characters of one line that says what is wrong."""


def main() -> NoReturn:
    """Run one command and exit with its code: docs/reference.md lists them."""
    interrupt.end_at_signals()
    _speak_utf8()
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Run one command. Returns the exit code; what the user did wrong is told on stderr."""
    try:
        code = cli.main(arguments, prog_name="klagg", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except (KlaggError, OSError) as error:
        return _complain([error])
    except SystemExit:  # click leaves like this at a broken pipe, and at nothing else
        return _complain([BrokenPipeError()])
    except BaseExceptionGroup as group:
        errors = list(leaves(group))
        ours = [error for error in errors if isinstance(error, KlaggError | OSError)]
        if len(ours) == len(errors):
            return _complain(ours)
        if all(isinstance(error, KeyboardInterrupt | KlaggError) for error in errors):
            return EXIT_INTERRUPTED
        raise
    return code if isinstance(code, int) else 0


def _complain(errors: Sequence[KlaggError | OSError]) -> int:
    """Say each thing wrong on a line of its own. The first one decides the exit code.

    What the system has refused and nothing has put into better words is the disk's fault: stdout
    may lie on a full one. But whoever read our output and has seen enough is no error.
    """
    told = [error for error in errors if not isinstance(error, BrokenPipeError)]
    if len(told) < len(errors) or isinstance(errors[0], OSError):
        _give_up_stdout()
    with contextlib.suppress(OSError):  # a stderr that is gone: the exit code says it
        for text in dict.fromkeys(map(str, told)):
            click.echo(f"klagg: {plain(text, COMPLAINT_LENGTH_MAX)}", err=True)
    if not told:
        return 0
    return told[0].exit_code if isinstance(told[0], KlaggError) else StoreError.exit_code


def _give_up_stdout() -> None:
    """Send what is still to be written to stdout nowhere, so that nothing fails at the exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _speak_utf8() -> None:
    """Write UTF-8 whatever the locale: names of contracts are in any script."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by whoever started us: it goes nowhere.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return one decorator for several options, listed in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# Settings as flags. Each goes by its setting's name, and None means: not given.
_data_dir = click.option("--data-dir", metavar="DIR", help="Where the data lives.  [default: data]")
_symbols = click.option(
    "--symbols",
    metavar="NAMES",
    help="Such as BTCUSDT,ETHUSDT; default: as before, at first all; or: all.",
)
_intervals = click.option("--intervals", metavar="NAMES", help="Such as 1m,1h,1d; or: all.")
_chosen = click.option(
    "--intervals", "chosen", metavar="NAMES", help="Such as 1h,1d; default: all that are stored."
)
_rest_url = click.option("--rest-url", metavar="URL", help="The exchange's REST root.")
_ws_url = click.option("--ws-url", metavar="URL", help="The exchange's market stream root.")
_since = click.option(
    "--since", metavar="SPAN", help="Such as 12h, 7d, 2026-01-31; 0d: no history."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
_headless = click.option("--headless", is_flag=True, help="No dashboard: status lines instead.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", message="klagg %(version)s")
def cli() -> None:
    """K-lines without holes, from Binance USD-M trades.

    \b
    See it work, no network needed:     klagg demo
    The real thing, first history:      klagg backfill --since 7d
    then live:                          klagg run
    """


@cli.command()
@click.option("--minutes", type=click.IntRange(1), help="Stop after this many simulated minutes.")
@click.option("--speed", metavar="X|max", default="60", show_default=True, help="Times real time.")
@click.option(
    "--symbols",
    type=click.IntRange(1, 2_000),
    default=45,
    show_default=True,
    help="Contracts of the simulated exchange.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the market.")
@click.option(
    "--faults",
    type=click.Choice(["none", "mild", "harsh", "lies"]),
    default="none",
    show_default=True,
    help="What goes wrong meanwhile.",
)
@_headless
@click.option("--json", "as_json", is_flag=True, help="Print a summary as one JSON object.")
@click.option("--data-dir", metavar="DIR", help="Keep the data there.  [default: a temporary one]")
def demo(
    *,
    minutes: int | None,
    speed: str,
    symbols: int,
    seed: int,
    faults: str,
    headless: bool,
    as_json: bool,
    data_dir: str | None,
) -> int:
    """Simulator, backfill and run in one process, on accelerated time.

    \b
    klagg demo                                   watch it, Ctrl-C ends it
    klagg demo --minutes 5 --headless --json     run it as a check
    klagg demo --minutes 120 --speed max         as fast as the processor allows

    Exits 0 only if no bar is missing and none differs from the simulator's official one.
    """
    from klagg_trio.commands.demo import run_command

    return run_command(
        minutes=minutes,
        speed=speed,
        symbols=symbols,
        seed=seed,
        faults=faults,
        headless=headless,
        as_json=as_json,
        data_dir=data_dir,
    )


@cli.command()
@_options(_since, _data_dir, _symbols, _intervals, _rest_url)
@_json
def backfill(as_json: bool, **flags: str | None) -> int:
    """Fetch history, then write the start snapshot for `run`.

    \b
    klagg backfill                               every symbol, the last day
    klagg backfill --since 30d --symbols BTCUSDT,ETHUSDT
    klagg backfill --since 0d                    only the state to start from

    Stop it with Ctrl-C as you like: run it again and it fetches only what is missing.
    """
    from klagg_trio.commands.backfill import run_command

    return run_command(flags, as_json=as_json)


@cli.command()
@_options(_data_dir, _symbols, _intervals, _rest_url, _ws_url)
@_headless
@click.option("--duration", metavar="SPAN", help="Stop cleanly after, such as 90s, 5m, 2h.")
def run(headless: bool, duration: str | None, **flags: str | None) -> int:
    """Keep every bar up to date, live, from the start snapshot.

    \b
    klagg run                                    with a dashboard
    klagg run --headless                         with status lines on stderr
    klagg run --duration 5m                      then a clean stop

    Ctrl-C, SIGTERM or SIGHUP ends it within two seconds and loses nothing.
    """
    from klagg_trio.commands.run import run_command

    return run_command(flags, headless=headless, duration=duration)


@cli.command()
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the market.")
@click.option(
    "--symbols",
    type=click.IntRange(1, 2_000),
    default=45,
    show_default=True,
    help="Contracts of the simulated exchange.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address.")
@click.option(
    "--rest-port", type=click.IntRange(0, 65_535), default=8780, show_default=True, help="0: any."
)
@click.option(
    "--ws-port", type=click.IntRange(0, 65_535), default=8781, show_default=True, help="0: any."
)
@click.option("--duration", metavar="SPAN", help="Stop after, such as 5m.")
@_json
def sim(
    *,
    seed: int,
    symbols: int,
    host: str,
    rest_port: int,
    ws_port: int,
    duration: str | None,
    as_json: bool,
) -> int:
    """Serve a simulated exchange on two loopback ports.

    \b
    klagg sim
    klagg backfill --rest-url http://127.0.0.1:8780 --data-dir D
    klagg run --rest-url http://127.0.0.1:8780 --ws-url ws://127.0.0.1:8781/market --data-dir D
    """
    from klagg_trio.commands.sim import run_command

    return run_command(
        seed=seed,
        symbols=symbols,
        host=host,
        rest_port=rest_port,
        ws_port=ws_port,
        duration=duration,
        as_json=as_json,
    )


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--symbol", help="The symbol of the trades.  [default: from the file's name]")
@click.option(
    "--intervals", metavar="NAMES", default="1m", show_default=True, help="Such as 1m,1h; or: all."
)
@click.option("--out", type=click.Path(dir_okay=False), help="Write there instead of stdout.")
def replay(file: str, symbol: str | None, intervals: str, out: str | None) -> int:
    """Make bars from recorded trades, a csv of aggTrades.

    \b
    klagg replay BTCUSDT-aggTrades-2026-10-01.zip > bars.csv
    klagg replay trades.csv --symbol BTCUSDT --intervals 1m,1h --out bars.csv

    The exchange's archive files as they are, with or without header, plain, zip or gz. What was
    read is told on stderr: repeats, skipped rows, gaps, suspect minutes.
    """
    from klagg_trio.commands.replay import run_command

    return run_command(file, symbol=symbol, intervals=intervals, out=out)


@cli.command()
@_data_dir
@_json
def verify(as_json: bool, **flags: str | None) -> int:
    """Check the stored bars offline; exit 3 on any finding.

    \b
    klagg verify --data-dir data

    Continuity, sanity, and that longer bars are the merge of their minutes.
    """
    from klagg_trio.commands.verify import run_command

    return run_command(flags, as_json=as_json)


@cli.command()
@_options(_data_dir, _symbols, _chosen, _since, _rest_url)
@click.option("--repair", is_flag=True, help="Replace what differs by the exchange's own bars.")
@_json
def audit(repair: bool, as_json: bool, chosen: str | None, **flags: str | None) -> int:
    """Hold stored bars against the exchange's own, field by field.

    \b
    klagg audit                                  the last day, every interval
    klagg audit --since 7d --symbols BTCUSDT --intervals 1m,1h
    klagg audit --repair                         while klagg does not run

    Exits 3 if a bar differs for no known reason, is suspect, or is missing.
    """
    from klagg_trio.commands.audit import run_command

    return run_command(flags, chosen=chosen, repair=repair, as_json=as_json)


@cli.command()
@_data_dir
@click.option("--join", "key", metavar="KEY", help="Give this contract its label back.")
@_json
def contracts(key: str | None, as_json: bool, **flags: str | None) -> int:
    """List the contracts with their permanent keys; undo a rename.

    \b
    klagg contracts
    klagg contracts --join BTCUSDT@20190908T1757     while klagg does not run

    A contract that another one took the label from keeps its bars under its key. If both turn out
    to be one, --join puts their bars together. Refused where they lie on the same minutes and
    disagree.
    """
    from klagg_trio.commands.contracts import run_command

    return run_command(flags, key=key, as_json=as_json)


@cli.command()
@_data_dir
@_json
def status(as_json: bool, **flags: str | None) -> int:
    """Say what the data directory holds and how fresh it is.

    \b
    klagg status
    """
    from klagg_trio.commands.status import run_command

    return run_command(flags, as_json=as_json)


@cli.command()
@_options(_data_dir, _rest_url, _ws_url)
@_json
def doctor(as_json: bool, **flags: str | None) -> int:
    """Say why it would not work here.

    \b
    klagg doctor

    Looks at the disk and for how long its room lasts, the whole database, the start snapshot, the
    way to the exchange (proxies), the exchange by REST and websocket, and the clock.
    """
    from klagg_trio.commands.doctor import run_command

    return run_command(flags, as_json=as_json)


@cli.group()
def config() -> None:
    """The settings."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@_options(_data_dir, _symbols, _intervals, _since, _rest_url, _ws_url)
@_json
@click.option("--toml", "as_toml_file", is_flag=True, help="Print a klagg.toml to start from.")
def config_show(origin: bool, as_json: bool, as_toml_file: bool, **flags: str | None) -> int:
    """Print every setting, its unit, its bounds and what it is for.

    \b
    klagg config show --origin
    klagg config show --toml > klagg.toml
    """
    from klagg_trio.commands.config_show import run_command

    return run_command(flags, origin=origin, as_json=as_json, as_toml_file=as_toml_file)


@cli.command()
@_options(_data_dir, _symbols, _chosen)
@click.option("--format", "kind", type=click.Choice(["csv", "parquet", "feather"]), default="csv")
@click.option("--out", type=click.Path(dir_okay=False), help="A file; csv goes to stdout without.")
@click.option(
    "--since",
    metavar="SPAN",
    help="Only newer bars: such as 7d up to the last tick, or from 2026-01-31.",
)
def export(
    kind: str, out: str | None, since: str | None, chosen: str | None, **flags: str | None
) -> int:
    """Write stored bars for other programs.

    \b
    klagg export --symbols BTCUSDT --intervals 1h > btc.csv
    klagg export --format parquet --out bars.parquet
    """
    from klagg_trio.commands.export import run_command

    return run_command(flags, chosen=chosen, kind=kind, out=out, since=since)
