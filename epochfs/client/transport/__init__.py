"""HTTP as a registry client needs it: sessions, time limits, retry, redirects, error conversion.

The only importer of requests and urllib3. From the bottom up: `urls` (where a server may send
us), `watchdog` (time limits), `tls` (who is trusted), `faults` (foreign exceptions made ours),
`connections` (what is changed in requests and urllib3), `retries`, `responses` and
`streams` (bodies), `refusals` and `tokenserver` (what other answers mean), `request` (what is
asked), `sender` (one request, to where redirects lead), `exchange` (all of it).
"""

from epochfs.client.transport.exchange import Transport
from epochfs.client.transport.refusals import web_page
from epochfs.client.transport.request import Request
from epochfs.client.transport.responses import Answer, Reply, TransportStats
from epochfs.client.transport.streams import BlobStream, Shortened, UploadBody
from epochfs.client.transport.urls import Url, next_page
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
