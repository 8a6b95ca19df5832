"""TLS: which servers must present a certificate that verifies, and who is sent ours.

Trusted are the system's authorities, those bundled with requests, and the user's. With neither
`ca_certs` nor `tls_verify` given, only loopback is not verified. A client certificate is a
credential: only the registry's own host is sent it.

The user's files are read again when they change, as short-lived certificates (cert-manager, SPIFFE)
are renewed during a mount. A certificate and its key change one after the other: until they fit,
the previous pair stays in use.

Locks: `TlsPolicy._lock` is held while files are read; no other lock of ours is taken under it.
"""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from epochfs.config import TransportOptions, is_loopback
from epochfs.errors import UsageError, printable

log = logging.getLogger(__name__)

WRONG_HOST_CODES = frozenset({62, 64})
"""OpenSSL's codes for a certificate that is for other names, or for other addresses."""

_State = tuple[tuple[int, int, int, int] | None, ...]
"""What stat(2) says of each file, None for one that is not there."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What was made of the files in one state; each kind of context is made once."""

    state: _State
    certificates: tuple[bytes, ...]
    contexts: dict[tuple[bool, bool], ssl.SSLContext] = field(default_factory=dict)


class TlsPolicy:
    """The TLS settings of connections, for a registry on the host `registry`."""

    def __init__(self, options: TransportOptions, registry: str) -> None:
        """Raises UsageError for files that cannot be used, rather than at the first use."""
        self._options = options
        self._registry = registry.lower()
        pairs = options.client_certs
        self._files = (*options.ca_certs, *(file for pair in pairs for file in pair if file))
        self._lock = threading.Lock()
        self._refused: _State | None = None
        self._loaded = self._load([self._kind(registry)] if self._files else [])

    def context(self, host: str) -> ssl.SSLContext:
        """Return the settings for connections to `host`, the same object until a file changes."""
        kind = self._kind(host)
        with self._lock:
            contexts = self._current().contexts
            if kind not in contexts:
                contexts[kind] = self._make(*kind)
            return contexts[kind]

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """The client certificates that new connections to the registry send."""
        with self._lock:
            return self._current().certificates

    def identifies(self, host: str) -> bool:
        return self._kind(host)[1]

    def in_use(self, context: ssl.SSLContext | None) -> bool:
        """Whether new connections still use these settings."""
        with self._lock:
            return context in self._loaded.contexts.values()

    def inspecting(self) -> ssl.SSLContext:
        """Return settings for looking at a server's certificate; no request is sent with them."""
        return self._make(verify=True, identified=False)

    def _current(self) -> _Loaded:
        """Return what is loaded, again if the files have changed and are usable; locked."""
        state = self._state()
        if state not in (self._loaded.state, self._refused):
            try:
                self._loaded = self._load(list(self._loaded.contexts))
            except (UsageError, OSError) as error:
                self._refused = state
                log.warning("changed on disk, and not used yet: %s", error)
            else:
                self._refused = None
                log.info("certificates have changed on disk, and are used from now on")
        return self._loaded

    def _load(self, kinds: list[tuple[bool, bool]]) -> _Loaded:
        state = self._state()
        contexts = {kind: self._make(*kind) for kind in kinds}
        certificates = tuple(path.read_bytes() for path, _ in self._options.client_certs)
        return _Loaded(state, certificates, contexts)

    def _state(self) -> _State:
        return tuple(_identity(path) for path in self._files)

    def _kind(self, host: str) -> tuple[bool, bool]:
        """Return whether `host` must present a certificate, and whether it is sent ours."""
        identified = bool(self._options.client_certs) and host.lower() == self._registry
        verifies = self._options.tls_verify
        if verifies is None:
            verifies = bool(self._options.ca_certs) or not is_loopback(host)
        return verifies, identified

    def _make(self, verify: bool, identified: bool) -> ssl.SSLContext:
        context = ssl.create_default_context()
        # A name in the subject only does not count (RFC 9525, section 6.3).
        context.hostname_checks_common_name = False
        if verify:
            context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for path in self._options.ca_certs if verify else ():
            try:
                context.load_verify_locations(path)
            except OSError as error:
                what = f"no usable CA certificate in '{printable(path)}'"
                raise UsageError(f"{what}: {_reason(error)}") from error
        for certificate, key in self._options.client_certs if identified else ():
            try:
                # An empty password, or OpenSSL would ask for a key's on the terminal.
                context.load_cert_chain(certificate, key, password="")
            except OSError as error:
                raise UsageError(
                    f"no usable client certificate in '{printable(certificate)}', with its key in "
                    f"'{printable(key or certificate)}': {_reason(error)}"
                ) from error
        return context


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    """Return what tells a file from the one before it, None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _reason(error: OSError) -> str:
    """Return why a file cannot be used; OpenSSL itself says little about that."""
    if not isinstance(error, ssl.SSLError):
        return str(error.strerror)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key belongs to another certificate"
    return "not in PEM, or encrypted (then decrypt it: openssl pkey)"
