"""The command line: `aiomigrate receive`, `send`, `inspect`, `doctor`, `demo`, `warm-up`.

`main.py` starts it, `app.py` declares the commands and their options; what a command does is in
a module of its own, which is imported when the command runs. So `aiomigrate --help` loads neither
the engine nor numba.
"""
