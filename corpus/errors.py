"""What can go wrong with data, as one readable line each."""


class DataError(RuntimeError):
    """Data cannot be prepared or read: the message is one line saying expected, found, what to do."""


class Interrupted(DataError):
    """Ctrl-C: what was finished is kept, and the same command continues from there."""
