"""Coverage-guided fuzzing: what reads a peer's bytes is fed with anything (docs/fuzzing.md)."""
