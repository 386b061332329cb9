"""One target under atheris: `python -m fuzz.run TARGET [libFuzzer's arguments]`.

Files among the arguments are played again, each once, instead of fuzzing.

Only aiomigrate's own modules are instrumented, and of them not the kernels: numba compiles their
bytecode and cannot compile what the instrumentation adds to it.
"""

import gc
import logging
import os
import random
import sys
from pathlib import Path

import atheris

_MEMORY = Path(__file__).parent.parent / "aiomigrate" / "memory"
_KERNELS = [f"aiomigrate.memory.{path.stem}" for path in _MEMORY.glob("*kernels.py")]

with atheris.instrument_imports(
    include=["aiomigrate"], exclude=[*_KERNELS, "aiomigrate.memory.numba_cache"]
):
    from fuzz.corpus import seeds
    from fuzz.mutation import STRUCTURED
    from fuzz.targets import TARGETS

__all__ = ["main"]

_BUILD = Path("build/fuzz")


def _write_corpus(name: str) -> Path:
    """Put the seeds of a target where libFuzzer looks for them and adds what it finds."""
    corpus = _BUILD / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    return corpus


def main() -> None:
    """Fuzz until libFuzzer has had enough; an input that is a finding is left in build/fuzz."""
    name, *arguments = sys.argv[1:]
    corpus = _write_corpus(name)
    logging.disable()
    # Else each full collection looks through all that numba has: half of the time of a reception.
    gc.freeze()

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.randrange(3) == 0:
            mutated: bytes = atheris.Mutate(data, max_size)
            return mutated
        return STRUCTURED[name](data, chance)[:max_size]

    argv = [sys.argv[0], f"-artifact_prefix={corpus.parent}{os.sep}", *arguments]
    if all(argument.startswith("-") for argument in arguments):
        argv.append(str(corpus))
    mutating = {"custom_mutator": mutate} if name in STRUCTURED else {}
    atheris.Setup(argv, TARGETS[name], **mutating)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
