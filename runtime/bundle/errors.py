"""The errors a user can meet. Each says what was wrong, with which file or value, and the remedy.

Leaves also subclass the builtin a caller would expect; `exit_code` is for the command line.
"""

import errno


class MimoError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1


class InputError(MimoError, ValueError):
    """An argument or a file that the user gave cannot be used."""

    exit_code = 2


class AudioError(InputError):
    """An audio file or array cannot be used."""


class TextError(InputError):
    """A text cannot be used."""


class ContextError(InputError):
    """The prompt, or the prompt with its answer, does not fit the context."""


class BundleError(InputError):
    """A bundle is missing, incomplete, altered, of another schema version, or computes NaN."""


class BundleWarning(UserWarning):
    """A bundle runs, but another of the same model would do so much better here."""


class RecipeError(InputError):
    """A recipe is unknown or malformed, or cannot be had of this checkpoint, bundle or target."""


class CalibrationError(InputError):
    """A calibration is missing, damaged, of another checkpoint, or says nothing of a layer."""


class EnvironmentProblem(MimoError, RuntimeError):
    """A package, provider or device that was asked for is not there."""

    exit_code = 3


class ResourceError(MimoError, MemoryError):
    """Not enough memory or disk; raised before work starts wherever it can be known."""

    exit_code = 4


class BusyError(ResourceError):
    """Too many requests wait already; the same one may be taken a little later."""


class ParityError(MimoError, AssertionError):
    """Two computations that must agree do not."""

    exit_code = 5


class EngineError(MimoError, RuntimeError):
    """An engine does not fit this bundle, product version or device."""

    exit_code = 6


# of an OSError: no space, none left to this user, or a file larger than the system or a limit takes
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# what reading a JSON file can raise that is not what it should be
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def no_room(error: OSError) -> str:
    """What to do about an error of DISK_FULL."""
    if error.errno == errno.EFBIG:
        return (
            "The file system, or a limit (`ulimit -f`), takes no larger file: write elsewhere, or "
            "lift the limit."
        )
    return "Free some disk space, or write elsewhere."


def unreadable(path: object, error: OSError, remedy: str) -> str:
    """The sentence for a file that is there and cannot be read; `remedy` if nothing forbids it."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path} may not be read; change its permissions."
    return f"{path} cannot be read ({error.strerror}). {remedy}"
