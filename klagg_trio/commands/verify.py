"""`klagg verify`: the findings, one a line."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from klagg_trio.commands import EXIT_FINDINGS
from klagg_trio.commands.start import DATABASE_NAME, load_here
from klagg_trio.core.plain import plain
from klagg_trio.store.verify import tally, verify


def run_command(flags: Mapping[str, str | None], *, as_json: bool) -> int:
    """Verify the database. Returns 3 where anything is found."""
    path = load_here(flags).settings.data_dir / DATABASE_NAME
    findings = verify(path)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], ensure_ascii=False))
    else:
        for finding in findings:
            where = f"{finding.symbol} {finding.interval} {finding.open_ms}"
            click.echo(plain(f"{finding.kind}: {where}: {finding.text}", 500))
        sources = ", ".join(
            f"{each.bars:,} {each.source} ({each.revised:,} revised)" for each in tally(path)
        )
        click.echo(f"klagg: {path}: {sources or 'no bars'}", err=True)
        click.echo(f"klagg: {len(findings)} findings", err=True)
    return EXIT_FINDINGS if findings else 0
