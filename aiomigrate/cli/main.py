"""Where the console script begins."""

import sys

__all__ = ["main"]

_EXTRA = frozenset({"rich", "structlog", "typer"})


def main() -> None:
    """Run the command line; exits with its status."""
    try:
        from aiomigrate.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        sys.exit(
            f"aiomigrate: the command line needs {error.name}, which is not installed: "
            "pip install 'aiomigrate[cli]'"
        )
    app(prog_name="aiomigrate")
