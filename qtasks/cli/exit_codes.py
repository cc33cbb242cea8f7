"""The exit codes of the command line (docs/cli.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qtasks.error_codes import ErrorCode
from qtasks.errors import ApiError, BrokerUnreachable, ConfigurationError, QTasksError

FAILED: Final = 1
"""A call failed, or a check did."""
USAGE: Final = 2
"""Wrong usage, no application, a port or a database that cannot be used."""
CONFIGURATION: Final = 3
NOT_AUTHORISED: Final = 4
UNREACHABLE: Final = 5
NOT_FOUND: Final = 6
CONFLICT: Final = 7
INTERRUPTED: Final = 130

_COMMAND_LINE: Final = "QT6"
"""How the codes of errors of the command line begin: no application, a taken port."""
_OF_STATUS: Final[Mapping[int, int]] = {
    401: NOT_AUTHORISED,
    403: NOT_AUTHORISED,
    404: NOT_FOUND,
    409: CONFLICT,
    412: CONFLICT,
}


def exit_code_of(error: QTasksError) -> int:
    """The exit code of a command that ends with `error`."""
    if isinstance(error, ApiError):
        return _OF_STATUS.get(error.status, FAILED)
    if isinstance(error, BrokerUnreachable):
        return UNREACHABLE
    if error.code in (ErrorCode.SCHEDULE_UNKNOWN, ErrorCode.TASK_UNKNOWN):
        return NOT_FOUND
    if isinstance(error, ConfigurationError) and not error.code.startswith(_COMMAND_LINE):
        return CONFIGURATION
    return USAGE
