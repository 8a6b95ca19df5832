"""The errno of each error."""

from __future__ import annotations

import errno

from epochfs.errors import (
    Busy,
    CacheFailure,
    ContentMismatch,
    CredentialsUnavailable,
    CrossDevice,
    DeadlineExceeded,
    Denied,
    EpochfsError,
    Exists,
    InvalidName,
    MountFailure,
    NameTooLong,
    NeverThere,
    NoRoom,
    NotEmpty,
    NotFound,
    NotPermitted,
    ProtocolViolation,
    ReadOnly,
    TlsFailure,
    TooLarge,
    Unavailable,
    UnconfirmedNotFound,
    Unsupported,
    UsageError,
    Vanished,
)

ABSENT = errno.ENOENT
NO_ATTRIBUTE = errno.ENODATA
UNFORESEEN = errno.EIO
IS_DIRECTORY = errno.EISDIR
LOOP = errno.ELOOP
OF_NAMES = (errno.ENOENT, errno.ENAMETOOLONG)
"""Not worth a warning in the log: only the caller cares."""

ERRNO: dict[type[EpochfsError], int] = {
    NotFound: errno.ENOENT,
    UnconfirmedNotFound: errno.ENOENT,
    InvalidName: errno.ENOENT,
    NameTooLong: errno.ENAMETOOLONG,
    Denied: errno.EACCES,
    CredentialsUnavailable: errno.EACCES,
    ReadOnly: errno.EROFS,
    NotPermitted: errno.EPERM,
    Exists: errno.EEXIST,
    NotEmpty: errno.ENOTEMPTY,
    Busy: errno.EBUSY,
    CrossDevice: errno.EXDEV,
    DeadlineExceeded: errno.ETIMEDOUT,
    ContentMismatch: errno.EIO,
    ProtocolViolation: errno.EIO,
    Unavailable: errno.EIO,
    TlsFailure: errno.EIO,
    Unsupported: errno.EIO,
    CacheFailure: errno.EIO,
    NoRoom: errno.ENOSPC,
    Vanished: errno.ESTALE,
    NeverThere: errno.ESTALE,
    TooLarge: errno.EFBIG,
    UsageError: errno.EINVAL,
    MountFailure: errno.EIO,
}
"""Every class of `errors` has a row."""


def errno_of(error: EpochfsError) -> int:
    """Return the errno for an error, by its class or the nearest base of it in `ERRNO`."""
    for kind in type(error).__mro__:
        if kind in ERRNO:
            return ERRNO[kind]
    return UNFORESEEN


def name_of(number: int) -> str:
    """Return the name of an errno, such as `ENOENT`."""
    return errno.errorcode[number]
