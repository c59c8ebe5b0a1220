"""What can go wrong, by whose fault it is. Foreign exceptions are mapped to these at the edge.

Anything that is not a `KlaggError` is our own bug: it ends the program with a traceback.
"""


class KlaggError(Exception):
    """Base of all errors that a user can act on. The text says what is wrong and what to do."""

    exit_code = 1


class ConfigurationError(KlaggError):
    """The user's: a setting is unknown, malformed, or impossible together with another."""

    exit_code = 78


class RemoteError(KlaggError):
    """The exchange's or the network's: unreachable, nonsense, refused. Worth a retry later."""

    exit_code = 69


class RefusedError(RemoteError):
    """The exchange refused this one request, for a reason that it gives a number."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


class BannedError(RemoteError):
    """The exchange has banned this address until `until_ms`: exchange time in ms, where known."""

    exit_code = 75

    def __init__(self, message: str, until_ms: int | None) -> None:
        super().__init__(message)
        self.until_ms = until_ms


class StoreError(KlaggError):
    """The disk's: full, read-only, or unreadable."""

    exit_code = 74


class BusyError(StoreError):
    """Another program holds the database for writing. Waited for, and tried again."""

    exit_code = 75


class DamagedDataError(KlaggError):
    """A file is missing, cut short, altered, or of another kind. Never repaired by guessing."""

    exit_code = 65


class LockedError(KlaggError):
    """Another klagg is at work on the same data directory."""

    exit_code = 75
