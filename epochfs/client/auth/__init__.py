"""Authentication of requests: challenges, the user's credentials, tokens and their cache.

From the bottom up: `challenges` (what a registry asks for), `logins` (what the user has),
`login_files` (where docker and podman keep it), `credential_helpers` (the programs that keep it for
them), `secretfiles` (which hold one secret each), `credentials` (which of all these counts),
`tokens` (what is asked of a token server), `refresh_tokens` (what that replaces in answering),
`authenticator` (all of it).

No request is made here. Where a token is needed, the caller's `Fetch` gets it, and its `Learn` asks
the registry's root, so that such a request has the same time limit, retries and redirect rules as
every other. The environment is not read here either: `cli` says which files there are.

Rules that keep credentials where they belong:

- Where there is a login and the registry asks for one at its root, every request is made with it:
  nothing is read anonymously first, and a token server that fails or refuses is an error.
- A static token goes to the registry as Bearer, and nowhere else.
- User name and password go to the registry as Basic if it asks for that, else to the token server
  that the registry names; an identity token goes to the token server only. Neither goes to one on
  plain http for an https registry, with user information in its URL, or at a link-local address,
  where clouds serve the machine's own secrets.
- A helper is told the registry's name, on its stdin. What it says is never shown, not even in part.
- `Authenticator.redact` takes all of them out of text that a server sent back.
"""

from epochfs.client.auth.authenticator import Authenticator, Bearer
from epochfs.client.auth.credentials import ANONYMOUS, CredentialStore
from epochfs.client.auth.login_files import MAX_PASSWORD_BYTES, Login, read_password
from epochfs.client.auth.tokens import (
    Challenge,
    Fetch,
    Learn,
    TokenRequest,
    describe_schemes,
    parse_challenges,
    parse_token,
)

__all__ = [
    "ANONYMOUS",
    "MAX_PASSWORD_BYTES",
    "Authenticator",
    "Bearer",
    "Challenge",
    "CredentialStore",
    "Fetch",
    "Learn",
    "Login",
    "TokenRequest",
    "describe_schemes",
    "parse_challenges",
    "parse_token",
    "read_password",
]
