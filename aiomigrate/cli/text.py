"""Sizes, rates and times as people read and write them; text of peers made harmless."""

__all__ = ["one_line", "parse_size", "rate_text", "size_text", "time_text"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_FACTORS = {
    "": 1, "B": 1,
    "K": 1 << 10, "KIB": 1 << 10,
    "M": 1 << 20, "MIB": 1 << 20,
    "G": 1 << 30, "GIB": 1 << 30,
    "T": 1 << 40, "TIB": 1 << 40,
}  # fmt: skip


def size_text(nbytes: float) -> str:
    """`1.5 GiB`: three digits at the most, in the unit that fits."""
    value = float(nbytes)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1024
    digits = 0 if unit == "B" or value >= 99.95 else 1
    return f"{value:.{digits}f} {unit}"


def rate_text(rate: float) -> str:
    """`812 MiB/s`."""
    return f"{size_text(rate)}/s"


def time_text(seconds: float) -> str:
    """`850 ms`, `3.2 s`, `4 min 10 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def parse_size(text: str) -> int:
    """Bytes of `2GiB`, `512M` (powers of 1024, as Cloud Hypervisor reads them) or a bare number.

    ValueError for anything else.
    """
    number = text.strip().rstrip("BIKMGTbikmgt")
    factor = _FACTORS.get(text.strip()[len(number) :].upper())
    if factor is None or not number.strip().isascii() or not number.strip().isdigit():
        raise ValueError(f"{text!r} is no size: write 2GiB, 512MiB or a number of bytes")
    return int(number) * factor


def one_line(text: str) -> str:
    """`text` without line breaks and other control characters: it may quote a peer."""
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )
