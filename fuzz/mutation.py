"""Changing an input: by its bytes, a list of moves by its moves, a document by its members.

libFuzzer's own mutations tear a list of moves apart at its lengths and leave nothing of JSON, so
some targets have mutations of their own besides. The tests use them all without libFuzzer, from a
seed.
"""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from fuzz.corpus import seeds
from fuzz.reception import CONNECTIONS, Move, decode_moves, encode_moves

__all__ = ["STRUCTURED", "mutate_bytes"]

_NUMBERS = [
    number.to_bytes(size, "little")
    for size in (1, 2, 4, 8)
    for number in (0, 1, 2, 4, 16, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1)
] + [(0x8000 + number).to_bytes(2, "little") for number in range(5)]
"""Commands, statuses, small lengths, and the ends of each width."""


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """One to four changes: a bit, a number, a piece cut out, put in or said twice."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(changed))
        length = chance.choice((1, 2, 4, 8, 16, 40))
        match chance.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                number = chance.choice(_NUMBERS)
                changed[at : at + len(number)] = number
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = chance.randbytes(length)
            case 4:
                changed[at:at] = changed[at : at + length]
            case _:
                del changed[at:]
    return bytes(changed)


@cache
def _others() -> list[Move]:
    return [move for seed in seeds("receive") for move in decode_moves(seed)]


def _mutate_moves(data: bytes, chance: random.Random) -> bytes:
    """A few changes to a list of moves; some come from other inputs."""
    moves = decode_moves(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randint(0, len(moves))
        if at == len(moves) or chance.randrange(6) == 0:
            moves.insert(at, chance.choice(_others()))
            continue
        move = moves[at]
        match chance.randrange(8):
            case 0:
                del moves[at]
            case 1:
                moves.insert(at, move)
            case 2:
                moves[at] = replace(move, connection=chance.randrange(CONNECTIONS))
            case 3:
                moves[at] = replace(move, rest=not move.rest)
            case 4:
                moves[at] = replace(move, ends=not move.ends, breaks=chance.randrange(4) == 0)
            case 5:  # cut it in two, with the other connections' moves in between
                cut = chance.randint(0, len(move.data))
                moves[at] = replace(move, data=move.data[:cut])
                moves.insert(
                    chance.randint(at + 1, len(moves)), replace(move, data=move.data[cut:])
                )
            case _:
                moves[at] = replace(move, data=mutate_bytes(move.data, chance)[:0xFFFF])
    return encode_moves(moves)


_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 4096, 2**32, 2**63, 2**64 - 4096, 2**64, 1.5),
    *("", "mem0", "2026-01-02", [], {}, [{}], [[]]),
)


def _mutate_document(data: bytes, chance: random.Random) -> bytes:
    """A few members of a JSON document get other values, go, or come twice."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, chance)
    for _ in range(chance.randint(1, 3)):
        places = [place for place in _containers(document) if place]
        if not places:
            return json.dumps(chance.choice(_VALUES)).encode()
        place = chance.choice(places)
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        match chance.randrange(4):
            case 0:
                del place[key]
            case 1 if isinstance(place, list):
                place.append(json.loads(json.dumps(place[key])))
            case 2 if isinstance(place[key], int):
                place[key] += chance.choice((-4096, -1, 1, 4096))
            case _:
                place[key] = json.loads(json.dumps(chance.choice(_VALUES)))
    return json.dumps(document).encode()


def _containers(value: Any) -> list[Any]:
    found = []
    if isinstance(value, dict | list):
        found.append(value)
        for member in value.values() if isinstance(value, dict) else value:
            found += _containers(member)
    return found


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "receive": _mutate_moves,
    "config": _mutate_document,
    "manifest": _mutate_document,
}
