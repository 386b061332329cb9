"""Watch a migration, and end it by Ctrl-C: python examples/watch_progress.py DIRECTORY ADDRESS

Progress is a frozen dataclass; a migration is iterated for it, or asked at any time.
"""

import asyncio
import signal
import sys

import aiomigrate

MIB = 1 << 20


def line(progress: aiomigrate.Progress) -> str:
    """What is interesting of it."""
    lanes = ", ".join(f"{lane.name} {lane.rate / MIB:.0f} MiB/s" for lane in progress.connections)
    return (
        f"{progress.elapsed_s:6.2f} s  {progress.fraction:4.0%}  {progress.phase:10}  "
        f"iteration {progress.iteration}  "
        f"{progress.bytes_done / MIB:.0f} of {progress.total_bytes / MIB:.0f} MiB  {lanes}"
    )


async def watch(directory: str, address: str) -> None:
    """Send a stored VM and print where it is, ten times a second at the most."""
    loop = asyncio.get_running_loop()
    options = aiomigrate.SendOptions(connections=2)
    async with (
        aiomigrate.StoredSource(directory) as source,
        aiomigrate.send(source, address, options) as migration,
    ):
        # False once the VM may be the destination's: from then on only waiting is safe.
        loop.add_signal_handler(signal.SIGINT, migration.cancel)
        async for progress in migration:
            print(line(progress), flush=True)
        report = await migration.result()
    for decision in report.decisions:
        print(decision)


def main() -> None:
    """Run it; a cancelled migration says so like any other that did not succeed."""
    try:
        asyncio.run(watch(*sys.argv[1:]))
    except aiomigrate.MigrationError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
