"""TLS: which servers must show a certificate that verifies, and who is shown ours.

Trusted are the system's authorities, those requests brings along, and the user's. With neither
`ca_certs` nor `tls_verify` given, loopback alone is not verified (design, section 4). A client
certificate is a credential: only the registry's own host is shown it.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from epochfs.config import TransportOptions, is_loopback
from epochfs.errors import UsageError, printable

WRONG_HOST_CODES = frozenset({62, 64})
"""OpenSSL's codes for a certificate that is for other names, or for other addresses."""


class TlsPolicy:
    """The TLS settings of connections, for a registry on the host `registry`."""

    def __init__(self, options: TransportOptions, registry: str) -> None:
        """Raises UsageError for files that cannot be used: better now than at the first use."""
        self._options = options
        self._registry = registry.lower()
        self._contexts: dict[tuple[bool, bool], ssl.SSLContext] = {}
        if options.ca_certs or options.client_certs:
            self.context(registry)
        self.certificates = tuple(path.read_bytes() for path, _ in options.client_certs)

    def context(self, host: str) -> ssl.SSLContext:
        """Return the settings for connections to `host`: always the same object for the same."""
        identified = bool(self._options.client_certs) and host.lower() == self._registry
        kind = self._verifies(host), identified
        if kind not in self._contexts:
            self._contexts.setdefault(kind, self._make(*kind))
        return self._contexts[kind]

    def inspecting(self) -> ssl.SSLContext:
        """Return settings of its own for looking at the certificate of a server.

        For a connection that carries no request, and so need not be to the right host.
        """
        return self._make(verify=True, identified=False)

    def _verifies(self, host: str) -> bool:
        if self._options.tls_verify is not None:
            return self._options.tls_verify
        return bool(self._options.ca_certs) or not is_loopback(host)

    def _make(self, verify: bool, identified: bool) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if verify:
            self._load_authorities(context)
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if identified:
            self._load_identity(context)
        return context

    def _load_authorities(self, context: ssl.SSLContext) -> None:
        context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
        for path in self._options.ca_certs:
            try:
                context.load_verify_locations(path)
            except OSError as error:
                raise UsageError(
                    f"no usable CA certificate in '{printable(path)}': {_reason(error)}"
                ) from error

    def _load_identity(self, context: ssl.SSLContext) -> None:
        for certificate, key in self._options.client_certs:
            try:
                # An empty password, or OpenSSL would ask for a key's on the terminal.
                context.load_cert_chain(certificate, key, password="")
            except OSError as error:
                raise UsageError(
                    f"no usable client certificate in '{printable(certificate)}', with its key in "
                    f"'{printable(key or certificate)}': {_reason(error)}"
                ) from error


def names_of(certificate: Mapping[str, object]) -> list[str]:
    """Return the hosts that a certificate is for, as `SSLSocket.getpeercert` returns it."""
    names = certificate.get("subjectAltName", ())
    assert isinstance(names, tuple)
    return [str(name) for _, name in names]


def _reason(error: OSError) -> str:
    """Return why a file cannot be used; OpenSSL itself says little of that."""
    if not isinstance(error, ssl.SSLError):
        return str(error.strerror)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key belongs to another certificate"
    return "not in PEM, or encrypted (then decrypt it: openssl pkey)"
