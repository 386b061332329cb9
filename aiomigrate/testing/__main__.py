"""The fault relay by itself: `python -m aiomigrate.testing tcp:0.0.0.0:7000 tcp:host:6000 ...`.

Prints where it listens, then a line for each fault that strikes and for each connection that ends.
"""

import argparse
import asyncio
import logging
import signal
import sys

import uvloop

from aiomigrate.testing import faults
from aiomigrate.testing.relay import FaultRelay
from aiomigrate.transport import AddressError, ListenFailed


async def _relay(arguments: argparse.Namespace) -> None:
    ending = asyncio.Event()
    # Not KeyboardInterrupt: who starts it in the background may have had SIGINT ignored (a shell
    # without job control does), and Python leaves that so.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    async with FaultRelay(
        arguments.target, listen=arguments.listen, faults=arguments.fault, seed=arguments.seed
    ) as relay:
        logging.getLogger(__name__).info("%s: relays to %s", relay.address, arguments.target)
        await ending.wait()


def _fault(text: str) -> faults.Fault:
    try:
        return faults.parse_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    """Relay until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m aiomigrate.testing",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=faults.__doc__,
    )
    parser.add_argument("listen", help="tcp:host:port (port 0: a free one) or unix:path")
    parser.add_argument("target", help="tcp:host:port or unix:path")
    parser.add_argument("--fault", action="append", default=[], type=_fault, metavar="TEXT")
    parser.add_argument("--seed", type=int, default=0, help="decides about jitter")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    try:
        uvloop.run(_relay(arguments))
    except KeyboardInterrupt:
        pass  # before it listened
    except (AddressError, ListenFailed) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
