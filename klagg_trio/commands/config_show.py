"""`klagg config show`: every setting, where its value comes from, and what it means."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from klagg_trio.commands.start import load_here
from klagg_trio.settings import RULES, as_toml, shown_values


def run_command(
    flags: Mapping[str, str | None], *, origin: bool, as_json: bool, as_toml_file: bool
) -> int:
    """Print the settings. Returns the exit code."""
    loaded = load_here(flags)
    if as_toml_file:
        click.echo(as_toml(loaded), nl=False)
        return 0
    shown = shown_values(loaded.settings)
    if as_json:
        entries = {
            name: {
                "value": value,
                "origin": loaded.origin[name],
                "unit": RULES[name].unit,
                "bounds": RULES[name].bounds,
                "reason": RULES[name].reason,
            }
            for name, value in shown.items()
        }
        click.echo(json.dumps(entries, ensure_ascii=False))
        return 0
    for name, value in shown.items():
        rule = RULES[name]
        bounds = f", {rule.bounds}" if rule.bounds else ""
        click.echo(f"{name} = {value}")
        if origin:
            click.echo(f"    from {loaded.origin[name]}")
        click.echo(f"    ({rule.unit}{bounds}) {rule.reason}")
    return 0
