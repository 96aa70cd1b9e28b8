"""One exception tree, so that a caller can tell who must act and a shell can tell from the exit code.

    LLMRayError                 1  our bug, or a fault that nobody foresaw
    ├── UserError               2  configuration or input; the message names the fix
    │   ├── ConfigError            an option is unknown or impossible
    │   └── InputError             data, a file or a reference is missing or malformed
    │       └── NotFoundError      a reference, an id or a file that does not exist
    ├── GateRefusedError        3  the evidence does not allow the promotion
    ├── BudgetExhaustedError    4  the money, time or tokens set aside are spent
    ├── UnavailableError       75  a cluster, port, disk or database is not there now: try again
    └── StoppedError           75  told to end before the work was done: the same call goes on

Every argument pickles, since errors cross process borders. Rejected: an error code per message; the class is the code.
"""

from typing import ClassVar, Literal

Kind = Literal["user", "system", "unknown"]


class LLMRayError(Exception):
    """Root of every error that llmray raises on purpose."""

    kind: ClassVar[Kind] = "unknown"
    """Who can mend it: the user, the system around us, or nobody knows yet."""
    exit_code: ClassVar[int] = 1


class UserError(LLMRayError):
    """What the user asked for cannot be done; the message names the fix."""

    kind = "user"
    exit_code = 2


class ConfigError(UserError):
    """An option is unknown, impossible, or contradicts another."""


class InputError(UserError):
    """Data, a file or a reference is missing or malformed."""


class NotFoundError(InputError):
    """A reference, an id or a file that does not exist."""


class GateRefusedError(LLMRayError):
    """The evidence does not allow the promotion."""

    kind = "user"
    exit_code = 3


class BudgetExhaustedError(LLMRayError):
    """The money, time or tokens set aside are spent."""

    kind = "user"
    exit_code = 4


class UnavailableError(LLMRayError):
    """A cluster, port, disk or database is not there now; the same call may succeed later."""

    kind = "system"
    exit_code = 75


class StoppedError(LLMRayError):
    """Somebody told this process to end; what was done is saved, and the same call goes on from there."""

    kind = "system"
    exit_code = 75
