"""Every error of iotsplit.

::

    IotsplitError
    ├── UserError              someone outside has to act; has an exit code and a fix
    │   ├── UsageError             2  wrong flag, setting, model or data
    │   ├── BrokerUnreachableError 3  nobody answers at the broker's address
    │   ├── RefusedError           4  credentials, TLS or access rules
    │   ├── QuorumError            5  agents missing or too slow
    │   ├── MismatchError          6  protocol, model or cut differ
    │   ├── DiffersError           7  a replay says something else than its tape
    │   └── RunFailedError         1  the work started and failed (disk full, process lost)
    └── PeerError              something arrived that is not acceptable: count, log once, drop
        ├── MalformedMessageError
        ├── MessageTooLargeError
        ├── ChunkMismatchError
        ├── TensorRefusedError
        ├── NotFiniteError
        └── DivergedError         what we made of what arrived: repeating it does not mend it
"""


class IotsplitError(Exception):
    """Base of all errors."""


class UserError(IotsplitError):
    """A person has to act: says what is wrong, where, and what to do.

    Args:
        message: what is wrong and where, one line.
        fix: what to do about it, one line.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}"


class UsageError(UserError):
    """A flag, setting, model or data set is wrong."""

    exit_code = 2


class BrokerUnreachableError(UserError):
    """Nobody answers at the broker's address."""

    exit_code = 3


class RefusedError(UserError):
    """The broker answered and refused: credentials, TLS or access rules."""

    exit_code = 4


class QuorumError(UserError):
    """Too few agents came, or they took too long."""

    exit_code = 5


class MismatchError(UserError):
    """Two agents differ in protocol version, model or cut."""

    exit_code = 6


class DiffersError(UserError):
    """A replayed agent says something else than its tape holds, or two tapes differ."""

    exit_code = 7


class RunFailedError(UserError):
    """The work started and could not be finished."""

    exit_code = 1


class PeerError(IotsplitError):
    """A message that must be dropped; it never stops an agent."""


class MalformedMessageError(PeerError):
    """A payload or topic that is not of this protocol.

    Args:
        reason: what is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"malformed message: {reason}")
        self.reason = reason


class MessageTooLargeError(PeerError):
    """A message announces more bytes than allowed."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"message of {size_bytes} bytes is over the limit of {limit_bytes}")
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes


class ChunkMismatchError(PeerError):
    """A chunk that does not fit the message it claims to belong to."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"chunk does not fit: {reason}")
        self.reason = reason


class TensorRefusedError(PeerError):
    """A tensor whose scheme, shape or size is not what was agreed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"tensor refused: {reason}")
        self.reason = reason


class NotFiniteError(PeerError):
    """A tensor holds NaN or infinite values."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} holds NaN or infinite values")
        self.name = name


class DivergedError(PeerError):
    """What was computed from what arrived is not finite or too large, and may not be sent or stepped with.

    It will be the same again: no repetition mends it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
