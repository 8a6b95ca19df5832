"""HTTP as a registry client needs it: connections, time limits, retries, redirects, clean errors.

The only importer of requests and urllib3. From the bottom up: `watchdog` (time limits), `request`
(what is asked, and where a server may send us), `tls` (who is trusted), `faults` (converts foreign
exceptions), `connections` (what changes in requests and urllib3), `responses` (read whole or
streamed), `refusals` (what other answers mean), `exchange` (all of it).
"""

from epochfs.client.transport.exchange import Transport
from epochfs.client.transport.refusals import web_page
from epochfs.client.transport.request import Request, UploadBody, Url, next_page
from epochfs.client.transport.responses import Answer, BlobStream, Reply, Shortened, TransportStats
from epochfs.client.transport.watchdog import Watch

__all__ = [
    "Answer",
    "BlobStream",
    "Reply",
    "Request",
    "Shortened",
    "Transport",
    "TransportStats",
    "UploadBody",
    "Url",
    "Watch",
    "next_page",
    "web_page",
]
