"""The table of causes: from what went wrong to the sentence that says so.

A sentence names what fails and what to do about it. The error of a request or a mount, the log and
`doctor` all show it; whoever raises the error fills in the facts. An error made from a row is
`explained`: nothing needs to be added.
"""

from __future__ import annotations

import enum

from epochfs.errors import printable

_LOG_IN = "give --username and --password-file, or use docker, podman or skopeo login"
_SKIP = "or trust it unseen with --tls-skip-verify"
_GIVE_AUTHORITY = f"give the certificate of its authority with --ca-cert, {_SKIP}"


class Cause(enum.Enum):
    """A cause, and its sentence; braces hold the facts to fill in."""

    # Access
    NO_LOGIN = f"no credentials were sent: {_LOG_IN}"
    NO_TOKEN = (
        "no token was sent, as the registry's token server {realm} gave none: check the "
        "credentials ({account})"
    )
    ANONYMOUS_REFUSED = f"anonymous access is refused: {_LOG_IN}"
    LOGIN_REFUSED = "the registry refuses the login: check the credentials ({account})"
    ACCOUNT_REFUSED = "access is refused: check the rights of the account ({account})"
    GIVEN_TOKEN_REFUSED = (
        "the registry does not accept the token ({said}): have a new one issued, "
        "for this registry ({account})"
    )
    ISSUED_TOKEN_REFUSED = (
        "the registry does not accept the token that its own token server {realm} issued "
        "({said}): compare the clocks of the two, and the issuer, service and key that the "
        "registry is configured with"
    )
    RIGHTS_MISSING = (
        "the token that the registry's token server {realm} issued does not allow this "
        "({said}): have the account given the right to it ({account})"
    )
    TOKEN_NOT_ENOUGH = (
        "the registry does not accept the token that its token server {realm} issued, and does not "
        "say why: check the rights of the account ({account}), and the issuer, service and key "
        "that the registry is configured with"
    )
    NO_COMMON_SCHEME = (
        "the registry offers only {offered} to log in with, and epochfs supports Basic and "
        "Bearer: have one of these enabled on the registry"
    )
    NO_CHALLENGE = (
        "the registry refuses access and does not say how to log in (no WWW-Authenticate): check"
        " what is in front of it"
    )
    PASSWORD_WANTED = (
        f"the registry asks for a user name and password (Basic), and a token was given "
        f"({{account}}): {_LOG_IN}"
    )
    MIRROR_REFUSES = (
        "the mirror does not allow anonymous reads: give a login in the header of its hosts.toml, "
        "or use docker, podman or skopeo login for it"
    )

    # Unavailable credentials
    HELPER_MISNAMED = "is not a valid program name"
    HELPER_ABSENT = "is not installed: install it, or take it out of the file"
    HELPER_UNRUNNABLE = "cannot be run: {reason}"
    HELPER_FAILED = "failed with exit code {code}: try '{path} get' by hand"
    HELPER_SLOW = "did not answer within {seconds} s: is it waiting for input?"
    HELPER_VERBOSE = "prints more than credentials can be: try its 'get' by hand"
    HELPER_UNINTELLIGIBLE = "gives an answer with no credentials: try its 'get' by hand"
    HELPER_EMPTY = "gives an empty secret: log in again"

    # Reaching the registry
    REDIRECTED = "{registry} redirects to {site}, where no credentials go: use {site} as the URL"
    HTTPS_WANTED = "the server speaks https on this port: write https:// in the URL"
    HEADER_TOO_LARGE = (
        "the request is too large for the server ({length} bytes of credentials): have a smaller "
        "token issued, or the server's limit raised (nginx: large_client_header_buffers)"
    )
    PROXY_WANTS_LOGIN = "the proxy asks for credentials: give its URL as http://user:password@…"
    PROXY_REFUSES = "the proxy does not connect us: check HTTPS_PROXY, or name the host in NO_PROXY"
    CLIENT_CERTIFICATE_MISSING = (
        "the server wants a client certificate: give --client-cert and --client-key"
    )
    CLIENT_CERTIFICATE_REFUSED = (
        "the server does not accept the client certificate: check --client-cert"
    )

    # Certificates of servers
    AUTHORITY_UNKNOWN = _GIVE_AUTHORITY
    CHAIN_INCOMPLETE = (
        f"{_GIVE_AUTHORITY}; if that is given, the server does not send the "
        "intermediate certificate: have it send its whole chain"
    )
    SELF_SIGNED = f"if it is the right one, give it with --ca-cert, {_SKIP}"
    EXPIRED = "have the server's certificate renewed, or check this machine's clock"
    NOT_YET_VALID = "check this machine's clock, or have the server's certificate replaced"
    REVOKED = "it is revoked: have the server's certificate replaced"
    WRONG_HOST = f"the certificate is for {{names}}: use such a name in the URL, {_SKIP}"
    NO_NAMES = (
        "the certificate has no subjectAltName, and its common name does not count: have it "
        f"issued with the name in the URL, {_SKIP}"
    )
    NO_TLS = "does the server speak https at all? epochfs does not fall back to http"
    TLS_VERSION = (
        "the server and this machine have no version of TLS in common: have TLS 1.2 or later "
        "enabled on the server"
    )
    TLS_REFUSED = "the server aborts the handshake: check its log, and that it serves this host"

    # The token server
    TOKEN_SERVER_DOWN = (
        "the registry's token server {realm} cannot be reached: check that it is running, and "
        "that this machine can reach it"
    )
    TOKEN_SERVER_FAILS = "the registry's token server {realm} fails: check its log"
    TOKEN_SERVER_LIMITS = "the registry's token server {realm} limits requests: try again {later}"
    TOKEN_SERVER_REFUSES_LOGIN = (
        "the registry's token server {realm} refuses the credentials: check the credentials "
        "({account})"
    )
    TOKEN_SERVER_REFUSES_REQUEST = (
        "the registry's token server {realm} does not take the request ({said}): "
        "check the service and realm that the registry is configured with"
    )
    TOKEN_SERVER_UNINTELLIGIBLE = (
        "the registry's token server {realm} does not answer like one: check the realm that "
        "the registry is configured with"
    )
    TOKEN_SERVER_REDIRECTS = (
        "the registry's token server {realm} redirects to {site}, where credentials are not "
        "sent: check the realm that the registry is configured with"
    )
    TOKEN_SERVER_DOUBTFUL = (
        "the registry's token server must not be sent credentials, as {why}: check the realm "
        "that the registry is configured with"
    )

    # The registry
    LIMITS = "the registry limits requests: try again {later}"
    FAILS = "the registry fails, or what is in front of it: check its log"
    UNREACHED = "check the URL, and that it is running"
    NO_REGISTRY = "check the URL"

    def told(self, **facts: object) -> str:
        """Return the sentence, with facts that a server or user may have worded."""
        return self.value.format(**{name: printable(fact, 300) for name, fact in facts.items()})
