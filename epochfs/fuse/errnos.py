"""The errno of each error."""

from __future__ import annotations

import errno

from epochfs import errors
from epochfs.errors import EpochfsError

ABSENT = errno.ENOENT
NO_ATTRIBUTE = errno.ENODATA
UNFORESEEN = errno.EIO
NOT_OFFERED = errno.EOPNOTSUPP
"""Of file systems that lack an extended attribute or a way to allocate; ENOTSUP is the same."""
IS_DIRECTORY = errno.EISDIR
LOOP = errno.ELOOP
OF_NAMES = (errno.ENOENT, errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV)
"""Not worth a warning in the log: only the caller cares."""

ERRNO: dict[type[EpochfsError], int] = {
    errors.NotFound: errno.ENOENT,
    errors.UnconfirmedNotFound: errno.ENOENT,
    errors.InvalidName: errno.ENOENT,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.Denied: errno.EACCES,
    errors.CredentialsUnavailable: errno.EACCES,
    errors.ReadOnly: errno.EROFS,
    errors.NotPermitted: errno.EPERM,
    errors.Exists: errno.EEXIST,
    errors.NotEmpty: errno.ENOTEMPTY,
    errors.Busy: errno.EBUSY,
    errors.CrossDevice: errno.EXDEV,
    errors.DeadlineExceeded: errno.ETIMEDOUT,
    errors.ContentMismatch: errno.EIO,
    errors.ProtocolViolation: errno.EIO,
    errors.Unavailable: errno.EIO,
    errors.TlsFailure: errno.EIO,
    errors.Unsupported: errno.EIO,
    errors.CacheFailure: errno.EIO,
    errors.NoRoom: errno.ENOSPC,
    errors.Vanished: errno.ESTALE,
    errors.NeverThere: errno.ESTALE,
    errors.TooLarge: errno.EFBIG,
    errors.UsageError: errno.EINVAL,
    errors.MountFailure: errno.EIO,
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
