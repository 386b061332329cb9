"""`aiomigrate send`: a stored VM to Cloud Hypervisor or aiomigrate; with --check it only asks."""

from typing import TYPE_CHECKING

from aiomigrate.cli.output import open_output
from aiomigrate.cli.running import Attempt, Settings, attempting, follow, load_kernels, on_loop
from aiomigrate.cli.status import ExitStatus

if TYPE_CHECKING:
    from aiomigrate import SendOptions, StoredSource

__all__ = ["run"]


def run(
    directory: str,
    address: str,
    options: "SendOptions",
    *,
    resume: bool,
    check: bool,
    force: bool,
    settings: Settings,
) -> ExitStatus:
    """Send one VM, or ask whether it would be taken."""
    settings.configure_logs()
    output = open_output(settings.progress, f"send {directory}")
    with attempting(output, settings) as attempt:
        load_kernels()
        from aiomigrate import StoredSource

        source = StoredSource(directory, resume=resume, force=force)
        if check:
            compared = _compare(attempt, directory)
            on_loop(attempt, lambda: _check(attempt, source, address, options, compared))
        else:
            on_loop(attempt, lambda: _send(attempt, source, address, options))
    return attempt.status


async def _send(
    attempt: Attempt, source: "StoredSource", address: str, options: "SendOptions"
) -> None:
    from aiomigrate import send

    async with source, send(source, address, options) as migration:
        attempt.watch(migration)
        report = await follow(migration, attempt.output)
    attempt.output.tell(
        "report",
        summary=f"sent to {address}, {'it runs there' if report.running else 'paused'}",
        status=int(attempt.status),
        **report.as_dict(),
    )


def _compare(attempt: Attempt, directory: str) -> tuple[str, ...]:
    """Compare the files with their checksums, off the loop: it may take long, and can be ended."""
    from aiomigrate.memory.stored import StoredVm

    with StoredVm.open(directory) as vm:
        attempt.begun = True
        return vm.verify()


async def _check(
    attempt: Attempt,
    source: "StoredSource",
    address: str,
    options: "SendOptions",
    compared: tuple[str, ...],
) -> None:
    from aiomigrate.checking import check

    async with source:
        await check(source, address, options)
    files = f"{len(compared)} files equal their checksums" if compared else "no checksums stored"
    attempt.output.tell("checked", address=address, compared=list(compared))
    attempt.output.say(
        f"{address} accepts the VM ({files}); nothing was sent, and it has stopped waiting: "
        "start it again before you send"
    )
