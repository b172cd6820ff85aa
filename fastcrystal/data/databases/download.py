"""Downloads that a server can live with: one connection, pauses, patience, and an end in every case.

`Fetcher` gets one address and does not give up at the first trouble; `download_pages` follows a query from page to
page into a `PageFolder`. What a page means is the business of `aflow` and `optimade`.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import logging
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

import fastcrystal
from fastcrystal.data.databases.pages import BadPageError, PageFolder

logger = logging.getLogger(__name__)

T = TypeVar("T")
USER_AGENT = f"fastcrystal/{fastcrystal.__version__} (+https://github.com/fastcrystal/fastcrystal)"
#: pages in a row that may bring nothing new before a server is taken to be going in circles
MAX_BARREN = 3
#: answers to which the same question, asked later, may get a better one; and every 5xx
_PASSING = (408, 425, 429)
_CHUNK = 1 << 16


@dataclass(frozen=True)
class RetryPolicy:
    """How a server is treated. Times in seconds.

    Attributes
    ----------
    delay : float
        Pause between the end of one request and the next.
    connect_timeout, read_timeout, page_timeout : float
        Until there is a connection; between two pieces of an answer; for a whole answer, so that no drip lasts forever.
    attempts : int
        Times that a page is asked for.
    backoff, max_wait : float
        First wait before asking again, doubled each time, times a random number in 0.5..1.5; and the longest one, also
        the longest that a server may ask for (Retry-After) without ending the download.
    max_page_bytes : int
        A larger answer is refused.
    """

    delay: float = 1.0
    connect_timeout: float = 15.0
    read_timeout: float = 120.0
    page_timeout: float = 600.0
    attempts: int = 6
    backoff: float = 2.0
    max_wait: float = 300.0
    max_page_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        for name in ("connect_timeout", "read_timeout", "page_timeout", "attempts", "max_page_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("delay", "backoff", "max_wait"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class DownloadError(OSError):
    """The server cannot be reached, or does not give what it should; one line."""


class _PassingTroubleError(Exception):
    """Worth another attempt, after `wait` seconds if the server said so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Page(NamedTuple):
    """What the loop needs to know of a page."""

    ids: list[str]
    """Of the structures on it."""
    next_url: str | None
    """Where the next page is; None: this is the last."""
    total: int | None = None
    """How many structures the server says there are."""
    delay: float = 0.0
    """Seconds that the server wants left before the next request."""


#: (body, url, number of the page, from 1) -> what it is; raises BadPageError
ParsePage: TypeAlias = Callable[[bytes, str, int], Page]


@dataclass(frozen=True)
class Downloaded:
    """What a download came to.

    Attributes
    ----------
    folder : Path
    pages, new_pages, entries : int
        Pages kept, those fetched just now, and structures on all of them (repeated ones counted as often as they came).
    total : int or None
        How many structures the server announced.
    complete : bool
        False: stopped at `max_entries`.
    """

    folder: Path
    pages: int
    new_pages: int
    entries: int
    total: int | None
    complete: bool

    def __str__(self) -> str:
        text = f"{self.entries} structures on {self.pages} pages in {self.folder} ({self.new_pages} pages fetched now)"
        if not self.complete:
            return f"{text}; not all: the same command with a larger --max-entries goes on"
        if self.total is not None and self.total != self.entries:
            text += f"; the server announced {self.total}"
        return text


class Fetcher:
    """Gets one address after another over one connection; every wait is one line of the log."""

    def __init__(self, retry_policy: RetryPolicy) -> None:
        import requests

        self._polite = retry_policy
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept": "application/json, */*;q=0.5"})
        self._free_at = 0.0
        self._reached = False

    def close(self) -> None:
        self._session.close()

    def rest(self, seconds: float) -> None:
        """Leave at least so long before the next request."""
        self._free_at = max(self._free_at, time.monotonic() + min(seconds, self._polite.max_wait))

    def get(self, url: str, parse: Callable[[bytes], T], what: str) -> tuple[bytes, T]:
        """The body at `url`, and what `parse` makes of it.

        Parameters
        ----------
        url : str
            http or https.
        parse : callable
            Raises `BadPageError` where the body is not what it should be.
        what : str
            For messages: "page 3".

        Raises
        ------
        DownloadError
            One line: no connection before the first answer, a refusal (4xx), trouble at every attempt, or a server
            that wants to be left alone for longer than `max_wait`.
        """
        host = urlsplit(url).netloc
        if urlsplit(url).scheme not in ("http", "https"):
            raise DownloadError(f"{what} is at {url[:200]!r}, which is no http(s) address")
        for attempt in range(1, self._polite.attempts + 1):
            time.sleep(max(0.0, self._free_at - time.monotonic()))
            try:
                body = self._body(url, what)
                return body, parse(body)
            except (_PassingTroubleError, BadPageError) as trouble:
                asked = getattr(trouble, "wait", None)
                if asked is not None and asked > self._polite.max_wait:
                    raise DownloadError(f"{host} asks to be left alone for {asked:.0f} s: try again then") from None
                if attempt == self._polite.attempts:
                    raise DownloadError(f"{what} of {host}: {trouble} (asked {attempt} times)") from None
                # jitter spreads the return of many clients that one outage stopped; nothing depends on its seed
                wait = min(self._polite.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.5), self._polite.max_wait)
                wait = wait if asked is None else asked
                again = f"asking again in {wait:.1f} s ({attempt + 1} of {self._polite.attempts})"
                logger.info(f"{what} of {host}: {trouble}; {again}")
                self.rest(wait)
            finally:
                self.rest(self._polite.delay)
        raise AssertionError("the loop returns or raises")

    def _body(self, url: str, what: str) -> bytes:
        """One request, to its end."""
        import requests
        import urllib3

        polite = self._polite
        deadline = time.monotonic() + polite.page_timeout
        try:
            timeout = (polite.connect_timeout, polite.read_timeout)
            with self._session.get(url, stream=True, timeout=timeout) as answer:
                self._reached = True
                pieces, size = [], 0
                while piece := _piece(answer.raw):
                    pieces.append(piece)
                    size += len(piece)
                    if size > polite.max_page_bytes:
                        raise DownloadError(f"{what} of {url[:200]} is larger than {polite.max_page_bytes} bytes")
                    if time.monotonic() > deadline:
                        raise _PassingTroubleError(f"not finished after {polite.page_timeout:g} s")
                body = b"".join(pieces)
                _check_status(answer.status_code, answer.headers, body, f"{what} of {urlsplit(url).netloc}")
                length = answer.headers.get("Content-Length", "")
                if length.isdigit() and not answer.headers.get("Content-Encoding") and size != int(length):
                    raise _PassingTroubleError(f"cut off after {size} of {length} bytes")
                return body
        except requests.exceptions.SSLError as error:
            raise DownloadError(f"no secure connection to {urlsplit(url).netloc}: {_short(error)}") from None
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            # later the same is an outage to be waited out
            if not self._reached and _no_connection(error):
                host = urlsplit(url).netloc
                raise DownloadError(
                    f"cannot reach {host}: {_short(error)}; is there a network, and is the address right?"
                ) from None
            raise _PassingTroubleError(_short(error)) from None
        except (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError) as error:
            raise _PassingTroubleError(f"cut off: {_short(error)}") from None
        except requests.exceptions.RequestException as error:
            raise DownloadError(f"{what} of {urlsplit(url).netloc}: {_short(error)}") from None


def download_pages(
    folder: PageFolder,
    first_url: str,
    parse: ParsePage,
    retry_policy: RetryPolicy,
    *,
    max_entries: int | None = None,
    progress: bool = True,
) -> Downloaded:
    """Fetch the pages of a query that a folder lacks.

    Parameters
    ----------
    folder : PageFolder
    first_url : str
        Where page 1 is.
    parse : callable
        (body, url, number of the page) -> Page, or `BadPageError`.
    retry_policy : RetryPolicy
    max_entries : int, optional
        Stop after the page that reaches so many structures; asked again with more, the download goes on.
    progress : bool
        Whether to show rate and, where the total is known, time left, on stderr.

    Raises
    ------
    DownloadError
        One line that names the page, and says that those before it are kept.
    """
    from tqdm import tqdm

    url, seen = _resumed(folder, first_url, parse)
    started_with, barren = folder.pages, 0
    every = 0.5 if sys.stderr.isatty() else 30.0  # a log file gets a line now and then
    bar: Any = tqdm(
        desc="structures", total=folder.total, initial=folder.entries, disable=not progress, mininterval=every, unit=""
    )
    fetcher = Fetcher(retry_policy)
    try:
        while url is not None and not folder.complete and (max_entries is None or folder.entries < max_entries):
            body, page = _fetch(fetcher, parse, url, folder.pages + 1)
            fingerprint = _fingerprint(page)
            barren = barren + 1 if fingerprint in seen or not page.ids else 0
            seen.add(fingerprint)
            if page.ids:
                folder.add(body, len(page.ids), page.total)
            url = page.next_url
            bar.total = folder.total
            bar.update(len(page.ids))
            fetcher.rest(page.delay)
            if barren >= MAX_BARREN and url is not None:
                # some servers answer what lies beyond the end with the last page again: then all they announced is here
                if folder.total is None or folder.entries < folder.total:
                    raise DownloadError(f"the server goes in circles: {barren} pages in a row hold nothing new")
                url = None
    except DownloadError as error:
        kept = f"{folder.pages} pages are kept in {folder.path}, the same command goes on from there"
        raise DownloadError(f"{error}; {kept}" if folder.pages else str(error)) from None
    finally:
        fetcher.close()
        bar.close()
    folder.complete = folder.complete or url is None
    folder.record()
    return Downloaded(
        folder.path, folder.pages, folder.pages - started_with, folder.entries, folder.total, folder.complete
    )


def _resumed(folder: PageFolder, first_url: str, parse: ParsePage) -> tuple[str | None, set[bytes]]:
    """Where the next page is, and the fingerprints known so far; the folder's counts are brought up to its pages.

    Pages that pages.json knows are not read again, but for the last, which says where the next one is.
    """
    url: str | None = first_url
    seen: set[bytes] = set()
    if folder.entries < 0:  # pages were lost: count anew
        folder.entries = folder.recorded = 0
    for number in range(min(folder.recorded + 1, folder.pages), folder.pages + 1):
        if number > 0:
            page = parse(folder.body(number), first_url, number)
            url = page.next_url
            seen.add(_fingerprint(page))
            folder.entries += len(page.ids) if number > folder.recorded else 0
            folder.total = page.total if page.total is not None else folder.total
    return url, seen


def _fetch(fetcher: Fetcher, parse: ParsePage, url: str, number: int) -> tuple[bytes, Page]:
    return fetcher.get(url, lambda body: parse(body, url, number), f"page {number}")


def _fingerprint(page: Page) -> bytes:
    """Equal for pages that hold the same structures; a few bytes, since there may be many thousand pages."""
    return hashlib.blake2b("\n".join(sorted(page.ids)).encode(), digest_size=12).digest()


def _piece(raw: Any) -> bytes:
    """What has arrived of a body, unpacked: whole reads would wait for a slow drip to fill them."""
    read = raw.read1 if hasattr(raw, "read1") else raw.read  # urllib3 1 has no read1
    piece: bytes | None = read(_CHUNK if hasattr(raw, "read1") else 1024, decode_content=True)
    return piece or b""


def _check_status(status: int, headers: Any, body: bytes, what: str) -> None:
    if status in _PASSING or status >= 500:
        raise _PassingTroubleError(f"the server answers {status}", _retry_after(headers.get("Retry-After")))
    if status != 200:
        raise DownloadError(f"{what}: the server refuses with {status}: {_said(body)}")


def _said(body: bytes) -> str:
    """A refusal in the server's words: those of JSON:API, where it speaks that, else how the body begins."""
    try:
        text = "; ".join(f"{e.get('title')}: {e.get('detail')}" for e in json.loads(body)["errors"])
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        text = body[:2000].decode("utf-8", "replace")
    return " ".join(text.split())[:300]


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date; None where there is neither."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


def _no_connection(error: BaseException) -> bool:
    """Whether there was never a connection."""
    import requests

    kinds = (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError)
    return isinstance(error, kinds) or any(s in str(error) for s in ("Failed to establish", "Failed to resolve"))


def _short(error: BaseException) -> str:
    """A network library's nested message in a few words."""
    text = " ".join(str(error).split())
    for sign, words in (
        ("NameResolution", "its name is not resolved"),
        ("getaddrinfo", "its name is not resolved"),
        ("Name or service not known", "its name is not resolved"),
        ("Connection refused", "connection refused"),
        ("Network is unreachable", "network is unreachable"),
        ("ConnectTimeout", "no answer"),
        ("connect timeout", "no answer"),
        ("Read timed out", "no answer in time"),
        ("closed connection without response", "connection closed without an answer"),
        ("Connection reset", "connection reset"),
        ("IncompleteRead", "the body is not whole"),
    ):
        if sign in text:
            return words
    return text[:200] or type(error).__name__
