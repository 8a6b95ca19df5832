"""A registry that answers well and then no longer does: what is in it, and what it comes to say.

`ROWS` has each listing and kind of content with each answer that it may be given in its place, and
tells what must then be seen of `WORLD`.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from epochfs.demo.samples import descriptor
from support import faults, model
from support.builders import Content, image, index, load
from support.faultproxy import (
    BLOB,
    BLOB_HEAD,
    CATALOG,
    MANIFEST,
    REFERRERS,
    TAGS,
    Exchange,
    Fault,
    FaultProxy,
    Kind,
)
from support.registries import EmbeddedRegistry
from support.scripted import Step, reply
from support.survey import TROUBLE, Survey, below, failing, lost, wrong

EACCES, EIO = frozenset({errno.EACCES}), frozenset({errno.EIO})
LATE = frozenset({errno.EIO, errno.ETIMEDOUT})


def signature(subject: Content, text: bytes) -> Content:
    """Return something that refers to a manifest."""
    return image(text, subject=descriptor(subject.raw, subject.media_type))


APP = index()
EDGE = image(b"edge" * 300, architecture="arm64")
SIGNATURE = signature(APP, b"signature")
COUNTERSIGNATURE = signature(SIGNATURE, b"signature of the signature")
SBOM = signature(APP.children[1], b"bill of materials")
WORLD: model.World = {
    "lab": {"v1": image(b"lab" * 500)},
    "lab/app": {"1.0": APP, "latest": APP, "edge": EDGE},
    "top": {"latest": image(b"top" * 40_000)},
}
UNTAGGED: model.Untagged = {"lab/app": (SIGNATURE, COUNTERSIGNATURE, SBOM)}
WHOLE = model.tree(WORLD, UNTAGGED)
TAGGED = model.tree(WORLD)
"""What is there of a registry that cannot be asked what refers to a manifest."""
NO_TAGS = model.tree({repository: {} for repository in WORLD})
APP_WITHOUT_TAGS = model.tree({**WORLD, "lab/app": {}})

READ_BEFORE = f"/lab/blobs/{model.digest(b'lab' * 500)}"
REPOSITORIES = tuple(map(model.shown, WORLD))
LISTINGS = tuple(
    f"{repository}/{name}" for repository in REPOSITORIES for name in ("tags", "manifests", "blobs")
)
BY_TAGS = ("/tags", "/manifests", "/blobs", "/layout/blobs", "/blobs/sha256", "/index.json")
"""How the paths end that need a list of tags."""


def furnish(registry: EmbeddedRegistry) -> None:
    """Store all of it."""
    for repository, held in WORLD.items():
        for tag, content in held.items():
            load(registry, repository, tag, content)
    for repository, referrers in UNTAGGED.items():
        for content in referrers:
            load(registry, repository, "", content)


@dataclass(frozen=True)
class Turn:
    """An answer in place of the right one.

    `errnos` are those that what cannot do without may fail with. `denies`, `down`: it is a
    refusal, or no answer at all, for which an older one may be served. `absent`: it says with the
    specification's code that there is no such thing.
    """

    title: str
    fault: Fault
    errnos: frozenset[int] = EIO
    denies: bool = False
    down: bool = False
    absent: bool = False


def answer(code: int, body: bytes = b"", media_type: str = "text/plain", **headers: str) -> Fault:
    """Return the fault that gives this answer, to HEAD without its body."""

    def fault(exchange: Exchange) -> Iterator[Step]:
        length = {"Content_Length": str(len(body)), "Content_Type": media_type, **headers}
        yield reply(code, b"" if exchange.request.method == "HEAD" else body, **length)

    return fault


def error(code: int, word: str, **headers: str) -> Fault:
    """Return the fault that answers with an error of the specification."""
    body = json.dumps({"errors": [{"code": word, "message": "so it is"}]}).encode()
    return answer(code, body, "application/json", **headers)


def own_next(exchange: Exchange) -> Iterator[Step]:
    """Answer a page of a listing that says the next one is itself."""
    yield exchange.answer.head(Link=f'<{exchange.request.target}>; rel="next"')
    yield from exchange.answer.pieces()


def only(part: str, fault: Fault) -> Fault:
    """Return a fault that befalls only requests whose path contains `part`."""

    def chosen(exchange: Exchange) -> Iterator[Step]:
        hit = part in exchange.request.path
        yield from fault(exchange) if hit else exchange.answer.played()

    return chosen


def _unknown(exchange: Exchange) -> Iterator[Step]:
    path = exchange.request.path
    parts = {"/manifests/": "MANIFEST_UNKNOWN", "/blobs/": "BLOB_UNKNOWN"}
    word = next((word for part, word in parts.items() if part in path), "NAME_UNKNOWN")
    yield from error(404, word)(exchange)


HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"
BASIC = 'Basic realm="registry"'

TURNS = (
    Turn("401", error(401, "UNAUTHORIZED", WWW_Authenticate=BASIC), EACCES, denies=True),
    Turn("403", error(403, "DENIED"), EACCES, denies=True),
    Turn("404 plain", answer(404, b"404 page not found\n")),
    Turn("404 of the specification", _unknown, absent=True),
    Turn("405", error(405, "UNSUPPORTED")),
    Turn("429 without end", answer(429), down=True),
    Turn("500", answer(500), down=True),
    Turn("502 with HTML", answer(502, HTML, "text/html"), down=True),
    Turn("200 with an empty body", answer(200)),
    Turn("200 with HTML", answer(200, HTML, "text/html")),
    Turn("a page that is its own next", own_next),
    Turn("silence", faults.silence, LATE, down=True),
)
SILENT, OWN_NEXT = TURNS[-1], TURNS[-2]

ASKED: Mapping[str, tuple[Kind, ...]] = {
    "catalog": (CATALOG,),
    "tags": (TAGS,),
    "manifests": (MANIFEST,),
    "blobs": (BLOB, BLOB_HEAD),
    "referrers": (REFERRERS,),
}
"""What may be answered otherwise, and which requests that are."""


@dataclass(frozen=True)
class State:
    """What a mount knows when the registry's mind changes.

    `walked`: everything was seen and read, and what can change is asked for anew. `older`: for how
    many seconds an older answer may be served while there is none.
    """

    title: str
    walked: bool
    older: float


COLD = State("just mounted", walked=False, older=0.0)
AGED = State("walked", walked=True, older=0.0)
KEPT = State("walked, older answers allowed", walked=True, older=86400.0)


@dataclass(frozen=True)
class Row:
    """One change, and what must be seen of it in a state."""

    what: str
    turn: Turn

    @property
    def title(self) -> str:
        return f"{self.what}: {self.turn.title}"

    def befall(self, proxy: FaultProxy) -> None:
        """Let it happen."""
        for kind in ASKED[self.what]:
            proxy.set(kind, self.turn.fault)

    def serves_older(self, state: State) -> bool:
        return self.turn.down and state.older > 0

    def has_no_such_call(self, state: State) -> bool:
        """Whether this says that the registry never had the referrers call."""
        return (
            self.what == "referrers"
            and not state.walked
            and not self.turn.down
            and self.turn is not OWN_NEXT
        )

    def tree(self, state: State) -> model.Tree:
        """What is there, by what the registry says."""
        if self.what == "tags" and self.turn.absent:
            return NO_TAGS
        return TAGGED if self.has_no_such_call(state) else WHOLE

    def may_fail(self, state: State) -> set[str]:
        """The paths that need what cannot be had: no other may fail."""
        if self.serves_older(state) or self.has_no_such_call(state):
            return set()
        if self.what == "catalog":
            # Nobody can say whether more repositories lie below one than were listed last.
            return {"/", *REPOSITORIES}
        if self.what == "blobs":
            if state.walked and not self.turn.denies:
                return set()
            return {path for path in WHOLE if isinstance(WHOLE[path], bytes) and "/blobs/" in path}
        listings = below(WHOLE, *BY_TAGS)
        if self.what == "tags":
            return set() if self.turn.absent else listings
        if self.what == "referrers":
            return listings - below(WHOLE, "/tags") | below(WHOLE, "/referrers")
        content = {path for path in WHOLE if "/manifests/" in path or "/tags/" in path}
        return listings | content | {path for path in WHOLE if "/layout/blobs/" in path}

    def must_fail(self, state: State) -> set[str]:
        """The paths that cannot be told whole without what is denied or failing."""
        if self.serves_older(state) or self.has_no_such_call(state):
            return set()
        if self.what == "catalog":
            return {"/", "/lab"}
        if self.what == "tags":
            return set() if self.turn.absent else set(LISTINGS)
        if self.what == "manifests":
            tags = {path for path in WHOLE if "/tags/" in path}
            return tags | {path for path in LISTINGS if not path.endswith("/tags")}
        if self.what == "referrers":
            return {path for path in LISTINGS if not path.endswith("/tags")}
        return set()

    def must_name(self, state: State) -> set[str]:
        """The paths that must be listed all the same."""
        if self.what == "catalog" or (self.what == "blobs" and not self.turn.denies):
            return set(WHOLE)
        if self.serves_older(state):
            return set(WHOLE)
        if self.what == "referrers":
            return set(TAGGED)
        ends = ("/tags", "/manifests", "/blobs", "/layout", *REPOSITORIES)
        named = {path for path in WHOLE if path.endswith(ends) and "sha256:" not in path}
        if self.what == "manifests":
            named |= {path for path in WHOLE if "/tags/" in path}
        return named

    def errnos(self, path: str) -> frozenset[int]:
        """What a path that must fail may fail with."""
        # A directory below which several things fail tells of one of them.
        direct = self.what in ("catalog", "tags") or "/tags/" in path
        return self.turn.errnos if direct else TROUBLE

    def listed_errnos(self) -> frozenset[int]:
        """What something that is listed may answer with: a blob also that it is gone, if it is."""
        gone = {errno.ENOENT, errno.ESTALE} if self.what == "blobs" and self.turn.absent else set()
        return TROUBLE | gone

    def must_open(self, state: State) -> set[str]:
        """The files that were read before, whose bytes the registry has not denied itself."""
        if self.turn.denies and self.what in ("manifests", "blobs"):
            return set()
        return {READ_BEFORE}

    def problems(self, state: State, found: Survey) -> Iterator[str]:
        """Yield in what a tree is not what it must be."""
        expected = self.tree(state)
        failed = failing(found)
        yield from (f"{path} is gone" for path in lost(found, expected))
        yield from wrong(found, expected, self.listed_errnos())
        for path in sorted(failed.keys() - self.may_fail(state)):
            yield f"{path} needs nothing that fails, and answers {failed[path]}"
        for path in sorted(self.must_fail(state) - failed.keys()):
            yield f"{path} cannot be known, and does not fail"
        for path in sorted((self.must_name(state) & expected.keys()) - found.keys()):
            yield f"{path} is known, and not named"
        for path in sorted(self.must_fail(state) & failed.keys()):
            if found[path].code not in self.errnos(path):
                yield f"{path} answers {failed[path]}"
        for path in sorted(self.must_open(state) & failed.keys()):
            yield f"{path} was read before, and answers {failed[path]}"


ROWS = tuple(
    Row(what, turn)
    for what in ASKED
    for turn in TURNS
    if turn is not OWN_NEXT or what in ("catalog", "tags", "referrers")
)

CASES = [
    (row, state)
    for row in ROWS
    for state in (COLD, AGED, KEPT)
    # Older answers are for what is down, and nothing is asked for where all blobs have been read.
    # Silence takes all the time there is, and leaves none to serve older answers in.
    if state is COLD
    or (state is AGED and row.turn is not SILENT and (row.what != "blobs" or row.turn.denies))
    or (state is KEPT and row.turn.down and row.turn is not SILENT and row.what != "blobs")
]
"""What is worth trying: what each row does to a tree in each of these states."""


def named(case: tuple[Row, State]) -> Any:
    """Return a case as a parameter of a test."""
    row, state = case
    return pytest.param(row, state, id=f"{row.title}, {state.title}")
