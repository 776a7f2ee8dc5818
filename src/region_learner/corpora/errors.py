"""The error that every corpus raises."""


class CorpusError(ValueError):
    """A corpus that cannot be loaded or made as asked: one line with what is wrong, where, and the cure."""
