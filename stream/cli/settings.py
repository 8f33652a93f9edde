"""The command settings."""

from __future__ import annotations

import typer

from polypstream.cli.options import Commands

app = Commands()


@app.command()
def settings() -> None:
    """Print all settings with their defaults (config.yaml)."""
    from polypstream.core.config import config_file

    typer.echo(config_file().read_text(encoding="utf-8"), nl=False)
