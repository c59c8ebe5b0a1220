"""`klagg verify`: the findings, one a line."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from klagg_trio.commands import EXIT_FINDINGS
from klagg_trio.commands.start import DATABASE_NAME, load_here
from klagg_trio.store.verify import verify


def run_command(flags: Mapping[str, str | None], *, as_json: bool) -> int:
    """Verify the database. Returns 3 where anything is found."""
    path = load_here(flags).settings.data_dir / DATABASE_NAME
    findings = verify(path)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(
                f"{finding.kind}: {finding.symbol} {finding.interval} {finding.open_ms}: "
                f"{finding.text}"
            )
        click.echo(f"klagg: {len(findings)} findings in {path}", err=True)
    return EXIT_FINDINGS if findings else 0
