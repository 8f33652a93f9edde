"""The command settings."""

from __future__ import annotations

import typer

from polypstream.core.config import config_file

app = typer.Typer()


@app.command()
def settings() -> None:
    """Print config.yaml: all settings with their defaults and explanations."""
    typer.echo(config_file().read_text(encoding="utf-8"), nl=False)
