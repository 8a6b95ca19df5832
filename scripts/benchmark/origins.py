"""Where the bytes come from: docker-registry, and the ways to it that nginx and a link make."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.programs import Server, free_port

_REGISTRY_CONFIG = """\
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {directory}/storage}}
http: {{addr: "127.0.0.1:{port}"}}
"""

_ACCESS = re.compile(
    r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[\d.]+" (?P<status>\d+) (?P<size>\d+) '
)
"""A line of docker-registry's access log; `size` counts the bytes of the body that it sent."""

_LOG_SECONDS = 0.5
"""Requests are logged when they end, which may be a moment after their reader has gone on."""

_NGINX_CONFIG = """\
daemon off;
{user}
worker_processes 2;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    sendfile on;
    keepalive_requests 1000000;
    upstream registry {{ server 127.0.0.1:{registry}; keepalive 64; }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffer_size 64k;
    proxy_buffers 16 256k;
    proxy_busy_buffers_size 512k;
    proxy_max_temp_file_size 0;

    server {{
        listen 127.0.0.1:{files};
        root {served};
        autoindex on;
    }}
    server {{
        listen 127.0.0.1:{limited};
        location / {{
            proxy_pass http://registry;
            limit_rate {rate};
        }}
    }}
    server {{
        listen 127.0.0.1:{rangeless};
        max_ranges 0;
        location / {{
            proxy_pass http://registry;
            proxy_set_header Connection "";
            proxy_set_header Range "";
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that docker-registry has answered with `size` bytes of body."""

    method: str
    path: str
    status: int
    size: int


@dataclass(frozen=True, slots=True)
class Registry:
    """A running docker-registry."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def mark(self) -> int:
        """Return the end of its access log, for `requests_since`."""
        time.sleep(_LOG_SECONDS)
        return self.log.stat().st_size

    def requests_since(self, mark: int) -> list[Request]:
        """Return what it was asked since then, when everything under way has ended."""
        time.sleep(_LOG_SECONDS)
        with self.log.open("rb") as log:
            log.seek(mark)
            text = log.read().decode("utf-8", "replace")
        return [
            Request(found["method"], found["path"], int(found["status"]), int(found["size"]))
            for found in _ACCESS.finditer(text)
        ]


@contextmanager
def registry(directory: Path) -> Iterator[Registry]:
    """Run a docker-registry that keeps all it has in `directory`, which exists."""
    port = free_port()
    config = directory / "config.yml"
    config.write_text(_REGISTRY_CONFIG.format(directory=directory, port=port))
    with Server(directory / "log", ["docker-registry", "serve", config]) as server:
        server.wait_for_port(port)
        yield Registry(port, server.log)


@dataclass(frozen=True, slots=True)
class Front:
    """A running nginx: base URLs.

    `files` serves a directory, with an index; `limited` is the registry with `limit_rate`;
    `rangeless` the registry as one that ignores Range, like Epoch.
    """

    files: str
    limited: str
    rangeless: str


@contextmanager
def front(directory: Path, served: Path, registry_port: int, rate: int) -> Iterator[Front]:
    """Run an nginx in front of a registry; `rate` is in bytes a second and per request."""
    ports = {name: free_port() for name in ("files", "limited", "rangeless")}
    config = directory / "nginx.conf"
    text = _NGINX_CONFIG.format(
        directory=directory,
        served=served,
        registry=registry_port,
        rate=rate,
        # Started by root, its workers would be somebody who may not enter our directory.
        user="user root;" if os.geteuid() == 0 else "",
        **ports,
    )
    config.write_text(text)
    with Server(directory / "log", ["nginx", "-c", config, "-e", directory / "error.log"]) as nginx:
        for port in ports.values():
            nginx.wait_for_port(port)
        yield Front(**{name: f"http://127.0.0.1:{port}" for name, port in ports.items()})


@contextmanager
def link(directory: Path, target: int, rate: int, round_trip: float) -> Iterator[str]:
    """Run a slow link to a port of this machine; return the base URL at its near end.

    `rate` is in bytes a second and per connection, `round_trip` in seconds.
    """
    port = free_port()
    module = [sys.executable, "-m", "scripts.benchmark.shaper"]
    numbers = [str(port), str(target), str(rate), str(round_trip)]
    with Server(directory / "log", [*module, *numbers]) as server:
        server.wait_for_port(port)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def names(directory: Path, repositories: int, tags: int) -> Iterator[str]:
    """Run a registry of so many repositories with so many tags each; return its base URL."""
    port = free_port()
    module = [sys.executable, "-m", "scripts.benchmark.tagserver"]
    with Server(directory / "log", [*module, str(port), str(repositories), str(tags)]) as server:
        server.wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
