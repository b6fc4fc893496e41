"""The project's exceptions as one tree, each with its exit code.

    CollaFuseError                 1
    |-- UsageError                 2   a command was called in a way that cannot work
    |-- ConfigError                3   a configuration is wrong: unknown key, value out of range
    |-- DataError                  4   images are missing, unreadable or do not fit
    |-- FileFormatError            5   a boundary file is damaged, foreign or over its limits
    |-- MismatchError              6   two valid parts do not fit each other
    |-- RefusedError               7   the protocol forbids it: a second release, a level not learned
    |-- OutputExistsError          8   an output would be overwritten
    |-- StorageError               9   the disk is full or not writable
    |-- ExportError               10   the exported graph does not compute what torch computes
    |-- RuntimeMissingError       11   a package or execution provider that is needed is not there
    |-- BusyError                 12   the server has no room for this now
    |-- AccessError               13   a token is missing, wrong, expired or does not allow this
    |-- UnreachableError          14   the server does not answer, or is not the one that was pinned
    |-- RankLostError             15   another process of a training in several ended
    `-- TrustError                16   a bundle is not signed by a key that is trusted here, or is an older one

Every message names the offending value, what was expected and what to do next. ``docs/exit-codes.md``
lists the codes; Ctrl-C exits with 130.
"""


class CollaFuseError(Exception):
    """Base of every error that a user can cause; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(CollaFuseError):
    """A command or function was called in a way that cannot work."""

    exit_code = 2


class ConfigError(CollaFuseError, ValueError):
    """A configuration value is unknown, contradictory or out of range."""

    exit_code = 3


class DataError(CollaFuseError):
    """Images or labels are missing, unreadable, or do not fit what was asked for."""

    exit_code = 4


class FileFormatError(CollaFuseError):
    """A release, intermediate, bundle or checkpoint is damaged, foreign or over its limits."""

    exit_code = 5


class MismatchError(CollaFuseError):
    """Two valid parts do not fit each other, such as an intermediate and a bundle."""

    exit_code = 6


class RefusedError(CollaFuseError):
    """The protocol forbids it, such as a second release of one image."""

    exit_code = 7


class OutputExistsError(CollaFuseError):
    """An output exists and overwriting it was not asked for."""

    exit_code = 8


class StorageError(CollaFuseError):
    """A file could not be written: disk full, no permission, no such folder."""

    exit_code = 9


class ExportError(CollaFuseError):
    """The exported graph does not compute what torch computes; nothing was left behind."""

    exit_code = 10


class RuntimeMissingError(CollaFuseError):
    """A package or execution provider that this command needs is not installed or does not work."""

    exit_code = 11


class BusyError(CollaFuseError):
    """The server has no room for this now; ``retry_after`` says in how many seconds to ask again."""

    exit_code = 12

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AccessError(CollaFuseError):
    """A token is missing, wrong, expired or revoked, or does not allow this."""

    exit_code = 13


class UnreachableError(CollaFuseError):
    """A server does not answer, or is not the one whose certificate was pinned."""

    exit_code = 14


class RankLostError(CollaFuseError):
    """Another process of a training in several ended, or was not heard of for too long."""

    exit_code = 15


class TrustError(CollaFuseError):
    """A bundle is unsigned, signed by a key that is not trusted here, changed since, or older than one seen before."""

    exit_code = 16


def first_line(error: Exception) -> str:
    """What a foreign error says, short enough for a sentence of ours; its class where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0][:300]
