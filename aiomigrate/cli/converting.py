"""`aiomigrate convert`: between a `file://` snapshot and a stored VM."""

from aiomigrate.cli.logs import LogFormat
from aiomigrate.cli.output import ProgressMode, open_output
from aiomigrate.cli.running import Attempt, Settings, attempting, load_kernels, on_loop
from aiomigrate.cli.status import ExitStatus

__all__ = ["run"]


def run(source: str, destination: str, *, verbosity: int) -> ExitStatus:
    """Convert one directory."""
    settings = Settings(ProgressMode.NONE, LogFormat.AUTO, verbosity)
    settings.configure_logs()
    output = open_output(settings.progress, f"convert {source}")
    with attempting(output, settings) as attempt:
        load_kernels()
        on_loop(attempt, lambda: _convert(attempt, source, destination))
    return attempt.status


async def _convert(attempt: Attempt, source: str, destination: str) -> None:
    from aiomigrate import convert

    attempt.begun = True
    kind = await convert(source, destination)
    attempt.output.say(f"{destination}: a {kind} of {source}")
