"""Where and when something was measured, for the pages that are made of results."""

import os
import platform
from datetime import UTC, datetime

__all__ = ["here_and_now"]


def here_and_now() -> str:
    """The date, this machine and its Python: `2026-11-24, 2 cores, Linux 6.1, Python 3.11.2`."""
    version = ".".join(platform.release().split(".")[:2])
    machine = f"{os.cpu_count()} cores, Linux {version}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {machine}, Python {platform.python_version()}"
