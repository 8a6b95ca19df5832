"""`RegistryClient`: one method per endpoint of an OCI Distribution registry.

It has everything that Epoch's own `registryclient` has, and accepts both what Epoch and what the
specification does ("§" is a section of the OCI Distribution Specification 1.1).

Names are parsed before any URL is built from them. Content is hashed where its digest is known;
names in listings are returned as the server sent them, and are not to be trusted. Mirrors are asked
first for what they are trusted with (`mirrors`); listings, and all of `pushing`, go to the registry
itself.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial

from epochfs.client.auth import Bearer
from epochfs.client.host import Host
from epochfs.client.hosts import Capability, RegistryHosts
from epochfs.client.hosts import find as find_hosts
from epochfs.client.mirrors import MirrorState, hosts_of
from epochfs.client.pushing import PushingClient
from epochfs.client.transport import BlobStream, TransportStats
from epochfs.config import Credentials, RegistryUrl, TransportOptions
from epochfs.errors import (
    DeadlineExceeded,
    Denied,
    EpochfsError,
    NotFound,
    Unsupported,
    UsageError,
    printable_url,
)
from epochfs.oci.manifests import Descriptor, Document
from epochfs.oci.names import (
    Digest,
    Reference,
    Repository,
    digest_of,
    reference_of,
    repository_of,
)

MANIFEST_LIMIT = 4 * 1024 * 1024
"""Default limit of a manifest in bytes: what every registry should take (§Pushing Manifests)."""


class RegistryClient(PushingClient):
    """A client of one registry; thread-safe.

    Names are given parsed or as text, which raises InvalidName if malformed. Every method ends
    within `options.timeout` seconds (`get_blob`: the headers, and then each read; `put_blob`: each
    step of progress), and besides what it documents raises:

    - NotFound: the registry does not know the repository, tag or digest;
    - Denied: 403, or 401 with the credentials we have;
    - Unavailable: unreachable, or still failing after several attempts;
    - DeadlineExceeded: no answer in time;
    - Unsupported: the registry does not offer the endpoint;
    - ProtocolViolation: an answer that the specification does not allow.
    """

    def __init__(
        self,
        base_url: str = "",
        token: str = "",
        *,
        credentials: Credentials | None = None,
        options: TransportOptions = TransportOptions(),  # noqa: B008 - frozen
        manifest_limit: int = MANIFEST_LIMIT,
        hosts: RegistryHosts | None = None,
    ) -> None:
        """Make a client of the registry at `base_url`; "" is Epoch's default, on loopback.

        `token` is sent as it is, as Bearer, and overrides the one in `credentials`.
        `manifest_limit` is in bytes. `hosts` are the registry's (`hosts.find`), by default it
        alone. Raises UsageError for a URL, CA or certificate that cannot be used.
        """
        url = RegistryUrl.parse(base_url)
        if url.prefix is not None:
            raise UsageError(f"a registry's URL has no path: '{printable_url(base_url)}'")
        given = credentials or Credentials()
        if token:
            given = replace(given, token=token)
        self.base_url = url.base
        """The registry's URL, without a trailing slash."""
        self._manifest_limit = manifest_limit
        hosts = hosts or find_hosts(None, url)
        self._withheld = ""
        if hosts.elsewhere and given.given:
            self._withheld = f"{given.given} is not sent: hosts.toml replaces {url.base}"
        elif given.token and not given.is_token_for(url.base):
            self._withheld = f"the token is for {given.token_for}, and is not sent to {url.base}"
            given = replace(given, token="")
        self._mirrors = hosts_of(hosts, given, options)
        self._origin = self._mirrors.origin
        self._transport = self._origin.transport
        super().__init__(self._origin)

    @property
    def stats(self) -> TransportStats:
        """Counters of requests, bytes received and retries."""
        return self._transport.stats

    @property
    def account(self) -> str:
        """The account that requests are made with, and where its credentials come from."""
        return self._transport.authenticator.credentials.describe()

    @property
    def unused_login(self) -> str:
        """A warning, if the registry was never sent the login that was given, else ""."""
        if self._withheld:
            return self._withheld
        if unused := self._transport.authenticator.credentials.unused():
            return f"{unused} was not used: {self.base_url} asks for none, and is read anonymously"
        return ""

    @property
    def token_expiry(self) -> float | None:
        """When the last of the tokens in use expires, as Unix time; None without one."""
        return self._transport.authenticator.token_expiry()

    @property
    def mirrors(self) -> tuple[MirrorState, ...]:
        """The state of each mirror, in the order they are asked."""
        return tuple(mirror.state() for mirror in self._mirrors.all)

    def ping_mirrors(self) -> None:
        """Ping each mirror; `mirrors` has the outcome."""
        for mirror in self._mirrors.all:
            with contextlib.suppress(EpochfsError):
                mirror.ask(lambda host, left: host.ping(left), mirror.transport.timeout / 2)

    def distrust_mirrors(self, digest: Digest) -> bool:
        """Record that a blob had wrong bytes; return whether a mirror may have sent them.

        If so, the blob is fetched from the registry itself from now on.
        """
        return self._mirrors.distrust(digest)

    def bearer_for(self, salt: bytes, repository: str) -> Bearer:
        """Return who reads a repository, by the credentials that the registry and mirrors are sent.

        A mirror whose credentials are unavailable is sent none. Raises Denied or DeadlineExceeded
        if the registry's own are unavailable.
        """
        own = self._transport.bearer_for(salt, repository)
        principals, fingerprints = [own.principal], [own.fingerprint]
        for mirror in self._mirrors.all:
            with contextlib.suppress(Denied, DeadlineExceeded):
                known = mirror.transport.bearer_for(salt, repository)
                if known.fingerprint:
                    principals.append(f"{mirror.config.url} {known.principal}")
                    fingerprints.append(f"{mirror.config.url} {known.fingerprint}")
        return Bearer("\n".join(principals), "\n".join(fingerprints))

    def ping(self) -> None:
        """Check that a registry answers, and admits us (`GET /v2/`, §Determining Support).

        Epoch refuses `/v2/` without a token and yet lets everyone read; so where no credentials
        were sent, a readable catalog is as good. Raises NotFound where there is no `/v2/`, which
        some registries lack, and ProtocolViolation if it is no registry.
        """
        self._origin.ping(self._transport.timeout)

    def catalog(self) -> list[str]:
        """Return the names of all repositories, in the server's order and spelling.

        `GET /v2/_catalog` is not in the specification; Docker's registry documents it. Raises
        Unsupported or Denied where it is not offered.
        """
        try:
            return self._origin.catalog()
        except NotFound as error:
            raise Unsupported(f"{error}: the registry has no catalog") from error

    def list_tags(self, name: Repository | str) -> list[str]:
        """Return a repository's tags, in the server's order and spelling (§Listing Tags)."""
        return self._origin.tags(repository_of(name))

    def get_manifest(
        self, name: Repository | str, reference: Reference | str, limit: int | None = None
    ) -> Document:
        """Return a manifest: its exact bytes, media type and digest (§Pulling manifests).

        The bytes are verified against the reference, if it is a digest, and the server's
        Docker-Content-Digest. Raises ContentMismatch if they differ, and TooLarge for more than
        `limit` bytes, by default the client's `manifest_limit`.
        """
        repository, wanted = repository_of(name), reference_of(reference)
        most = self._manifest_limit if limit is None else limit
        trust = Capability.PULL if isinstance(wanted, Digest) else Capability.RESOLVE
        ask = partial(Host.manifest, repository=repository, reference=wanted, limit=most)
        return self._mirrors.ask(trust, ask)

    def resolve(self, name: Repository | str, reference: Reference | str) -> Descriptor:
        """Return the descriptor of what a reference names now (`HEAD`, §Pulling manifests).

        Where HEAD is refused, or does not give digest and size, the manifest is fetched: it is
        NotFound only if GET says so too. Raises ContentMismatch if a digest resolves to another.
        """
        repository, wanted = repository_of(name), reference_of(reference)
        most = self._manifest_limit
        ask = partial(Host.resolve, repository=repository, reference=wanted, limit=most)
        return self._mirrors.ask(Capability.RESOLVE, ask)

    def referrers(self, name: Repository | str, digest: Digest | str) -> list[Descriptor]:
        """Return what refers to a manifest, which need not exist (§Listing Referrers).

        Raises Unsupported where that is not offered: registries say so with any refusal, or answer
        with no index, and the specification has referrers tagged then. The error's `__cause__` is
        what the answer means elsewhere, such as Denied.
        """
        return self._origin.referrers(repository_of(name), digest_of(digest))

    def blob_size(self, name: Repository | str, digest: Digest | str) -> int:
        """Return a blob's size in bytes (`HEAD`, or where that does not say, `GET` of a byte)."""
        repository, wanted = repository_of(name), digest_of(digest)
        ask = partial(Host.blob_size, repository=repository, digest=wanted)
        return self._mirrors.ask(Capability.RESOLVE, ask)

    def get_blob(
        self, name: Repository | str, digest: Digest | str, start: int = 0, end: int | None = None
    ) -> BlobStream:
        """Open a blob for reading, from byte `start` to before byte `end` (§Pulling blobs).

        The caller closes the stream, and checks its `start`: a server without Range sends the whole
        blob. The bytes are not hashed. Raises ProtocolViolation if the answer is another range, or
        the range lies outside the blob.
        """
        repository, wanted = repository_of(name), digest_of(digest)
        if start < 0 or (end is not None and end <= start):
            raise UsageError(f"not a range of bytes: {start} to {end}")
        return self._mirrors.open_blob(repository, wanted, start, end)

    def read_blob(self, name: Repository | str, digest: Digest | str, limit: int) -> bytes:
        """Return a whole blob of at most `limit` bytes, verified (§Pulling blobs).

        Raises TooLarge for a larger one, ContentMismatch if it has another digest.
        """
        repository, wanted = repository_of(name), digest_of(digest)
        ask = partial(Host.small_blob, repository=repository, digest=wanted, limit=limit)
        return self._mirrors.ask(Capability.PULL, ask)

    def close(self) -> None:
        """End every call under way, with Unavailable, and close the connections."""
        for host in (*self._mirrors.all, self._origin):
            host.transport.close()
