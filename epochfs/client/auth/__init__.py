"""Authentication of requests: challenges, the user's credentials, tokens and their cache.

From the bottom up: `login_files` (where docker and podman keep a login), `credential_helpers` (the
programs that keep it for them), `credentials` (the list of providers), `tokens` (challenges and the
token server's protocol), `authenticator` (the Authorization value of each request).

No request is made here, and no environment read: the caller's `Fetch` and `Learn` ask the token
server and the registry's root, with the same time limit, retries and redirect rules as any other
request, and `cli` says which files there are.

Rules that keep credentials where they belong:

- With a login, where the registry asks for one at its root, every request is made with it: nothing
  is read anonymously first, and a token server that fails or refuses is an error.
- A given token goes to the registry as Bearer, and nowhere else.
- User name and password go to the registry as Basic if it asks for that, else to the token server
  that it names; an identity token goes to the token server only. Neither goes to one on plain http
  for an https registry, with user information in its URL, or at a link-local address, where clouds
  serve the machine's own secrets.
- A helper is told the registry's name, on its stdin. Its answer is never shown, not even in part.
- `Authenticator.redact` removes all of them from text that a server sent back.
"""

from epochfs.client.auth.authenticator import Authenticator, Bearer, Turn
from epochfs.client.auth.credentials import CredentialStore
from epochfs.client.auth.login_files import read_password
from epochfs.client.auth.tokens import TokenRequest, describe_schemes, parse_challenges

__all__ = [
    "Authenticator",
    "Bearer",
    "CredentialStore",
    "TokenRequest",
    "Turn",
    "describe_schemes",
    "parse_challenges",
    "read_password",
]
