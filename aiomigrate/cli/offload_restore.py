"""`aiomigrate offload restore`: a snapshot, by descriptor, to whoever waits for it."""

from typing import TYPE_CHECKING, Any

from aiomigrate.cli.output import open_output
from aiomigrate.cli.running import Attempt, Settings, attempting, follow, load_kernels, on_loop
from aiomigrate.cli.status import ExitStatus

if TYPE_CHECKING:
    from aiomigrate import LoadedSource, SendOptions

__all__ = ["run"]


def run(
    directory: str,
    address: str,
    options: "SendOptions",
    *,
    resume: bool,
    on_demand: bool,
    workers: int,
    settings: Settings,
) -> ExitStatus:
    """Restore one VM."""
    settings.configure_logs()
    output = open_output(settings.progress, f"restore {directory}")
    with attempting(output, settings) as attempt:
        load_kernels()
        from aiomigrate import LoadedSource, OnDemandSource

        kind = OnDemandSource if on_demand else LoadedSource
        # As often as anybody likes, as the reference daemon does: it is a copy, and what it was
        # taken of may go on. Where that is not so, `_restore` says it.
        source = kind(directory, resume=resume, force=True, workers=workers)
        on_loop(attempt, lambda: _restore(attempt, source, directory, address, options))
    return attempt.status


async def _restore(
    attempt: Attempt, source: "LoadedSource", directory: str, address: str, options: "SendOptions"
) -> None:
    from aiomigrate import send

    output = attempt.output
    async with source:
        if refusal := source.vm.refusal():
            output.say(f"{directory}: {refusal}; see that the VM does not run twice")
        async with send(source, address, options) as migration:
            attempt.watch(migration)
            report = await follow(migration, output, lambda event: _of(source, event))
    output.tell(
        "report",
        summary=f"restored from {directory}, {'it runs' if report.running else 'paused'}",
        status=int(attempt.status),
        **_of(source, report.as_dict()),
    )


def _of(source: "LoadedSource", event: dict[str, Any]) -> dict[str, Any]:
    """An event with what came out of the directory: the engine moves no memory itself."""
    name = "bytes_done" if "bytes_done" in event else "bytes"
    return event | {name: source.given_bytes}
