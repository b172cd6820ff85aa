"""Downloads that a server can live with: one connection, pauses, patience, and an end in every case.

`Fetcher` gets one address and does not give up at the first trouble; `download_pages` follows a query from page to
page into a `PageFolder`. What a page means is the business of `aflow` and `optimade`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

import fastcrystal
from fastcrystal.data.databases.pages import BadPageError, PageFolder
from fastcrystal.utils.progress import progress_bar

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
    """Manners and patience with a server. Times in seconds."""

    delay: float = 1.0
    """Pause between the end of one request and the next."""
    connect_timeout: float = 15.0
    """Longest wait for a connection."""
    read_timeout: float = 120.0
    """Longest silence within an answer."""
    page_timeout: float = 600.0
    """Longest time for a whole answer, so that no drip lasts forever."""
    attempts: int = 6
    """Times that a page is asked for."""
    backoff: float = 2.0
    """First wait before asking again, doubled each time; up to half of it is added at random."""
    max_wait: float = 300.0
    """Longest wait, also the longest that a server may ask for (Retry-After) without ending the download."""
    max_page_bytes: int = 1 << 28
    """A larger answer is refused."""

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
            return f"{text}; not all: the same command with a larger max_entries goes on"
        if self.total is not None and self.total != self.entries:
            text += f"; the server announced {self.total}"
        return text


class Fetcher:
    """Gets one address after another over one connection; every wait is one line of the log."""

    def __init__(self, retry_policy: RetryPolicy) -> None:
        import requests
        from urllib3.util.retry import RequestHistory, Retry

        self._policy = retry_policy
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept": "application/json, */*;q=0.5"})
        # only the loop in `get` sees bodies that are cut, slow or no page: it asks again, not the session's adapter
        self._retry = Retry(
            retry_policy.attempts - 1,
            backoff_factor=retry_policy.backoff / 2,
            backoff_jitter=retry_policy.backoff / 2,
            backoff_max=retry_policy.max_wait,
            history=(RequestHistory("GET", None, None, None, None),),  # without it the second attempt comes at once
        )
        self._free_at = 0.0
        self._reached = False

    def close(self) -> None:
        self._session.close()

    def rest(self, seconds: float) -> None:
        """Leave at least so long before the next request."""
        self._free_at = max(self._free_at, time.monotonic() + min(seconds, self._policy.max_wait))

    def get(self, url: str, parse: Callable[..., T], what: str, *arguments: Any) -> tuple[bytes, T]:
        """The body at `url`, and what `parse` makes of it.

        Parameters
        ----------
        url : str
            http or https.
        parse : callable
            Of the body and `arguments`. Raises `BadPageError` where the body is not what it should be.
        what : str
            For messages: "page 3".

        Raises
        ------
        DownloadError
            One line: no connection before the first answer, a refusal (4xx), trouble at every attempt, or a server
            that wants to be left alone for longer than `max_wait`.
        """
        from urllib3.exceptions import MaxRetryError

        host = urlsplit(url).netloc
        if urlsplit(url).scheme not in ("http", "https"):
            raise DownloadError(f"{what} is at {url[:200]!r}, which is no http(s) address")
        retry, policy = self._retry, self._policy
        while True:
            time.sleep(max(0.0, self._free_at - time.monotonic()))
            try:
                body = self._body(url, f"{what} of {host}")
                return body, parse(body, *arguments)
            except (_PassingTroubleError, BadPageError) as trouble:
                wait = getattr(trouble, "wait", None)
                if wait is not None and wait > policy.max_wait:
                    raise DownloadError(f"{host} asks to be left alone for {wait:.0f} s: try again then") from None
                try:
                    retry = retry.increment("GET", url, error=trouble)
                except MaxRetryError:
                    raise DownloadError(f"{what} of {host}: {trouble} (asked {policy.attempts} times)") from None
                wait = retry.get_backoff_time() if wait is None else wait
                again = f"asking again in {wait:.1f} s ({len(retry.history)} of {policy.attempts})"
                logger.info(f"{what} of {host}: {trouble}; {again}")
                self.rest(wait)
            finally:
                self.rest(policy.delay)

    def _body(self, url: str, what: str) -> bytes:
        """One request, to its end."""
        import requests
        import urllib3

        policy, body = self._policy, bytearray()
        deadline = time.monotonic() + policy.page_timeout
        try:
            timeout = (policy.connect_timeout, policy.read_timeout)
            with self._session.get(url, stream=True, timeout=timeout) as answer:
                self._reached = True
                # what has arrived: whole reads would wait for a slow drip to fill them
                while piece := answer.raw.read1(_CHUNK, decode_content=True):
                    body += piece
                    if len(body) > policy.max_page_bytes:
                        raise DownloadError(f"{what} is larger than {policy.max_page_bytes} bytes: {url[:200]}")
                    if time.monotonic() > deadline:
                        raise _PassingTroubleError(f"not finished after {policy.page_timeout:g} s")
                if answer.status_code in _PASSING or answer.status_code >= 500:
                    raise _PassingTroubleError(f"the server answers {answer.status_code}", self._asked_wait(answer))
                if answer.status_code != 200:
                    raise DownloadError(f"{what}: the server refuses with {answer.status_code}: {_said(bytes(body))}")
                return bytes(body)
        except requests.exceptions.SSLError as error:
            raise DownloadError(f"no secure connection for {what}: {_short(error)}") from None
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            # later the same is an outage to be waited out
            if not self._reached and _no_connection(error):
                reason = f"{_short(error)}; is there a network, and is the address right?"
                raise DownloadError(f"cannot reach {urlsplit(url).netloc}: {reason}") from None
            raise _PassingTroubleError(_short(error)) from None
        except urllib3.exceptions.HTTPError as error:
            raise _PassingTroubleError(f"cut off: {_short(error)}") from None
        except requests.exceptions.RequestException as error:
            raise DownloadError(f"{what}: {_short(error)}") from None

    def _asked_wait(self, answer: Any) -> float | None:
        """Seconds of the header Retry-After, a number or a date; None where there is neither."""
        from urllib3.exceptions import InvalidHeader

        try:
            wait: float | None = self._retry.get_retry_after(answer.raw)
        except InvalidHeader:
            return None
        return wait


def download_pages(
    folder: PageFolder,
    first_url: str,
    parse: ParsePage,
    retry_policy: RetryPolicy | None = None,
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
    retry_policy : RetryPolicy, optional
    max_entries : int, optional
        Stop after the page that reaches so many structures; asked again with more, the download goes on.
    progress : bool
        Whether to show rate and, where the total is known, time left, on stderr.

    Raises
    ------
    DownloadError
        One line that names the page, and says that those before it are kept.
    """
    url, seen = _resumed(folder, first_url, parse)
    started_with, barren = folder.pages, 0
    bar = progress_bar(desc="structures", unit="structure", total=folder.total, initial=folder.entries, show=progress)
    fetcher = Fetcher(retry_policy or RetryPolicy())
    try:
        while url is not None and not folder.complete and (max_entries is None or folder.entries < max_entries):
            number = folder.pages + 1
            body, page = fetcher.get(url, parse, f"page {number}", url, number)
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


def _fingerprint(page: Page) -> bytes:
    """Equal for pages that hold the same structures; a few bytes, since there may be many thousand pages."""
    return hashlib.blake2b("\n".join(sorted(page.ids)).encode(), digest_size=12).digest()


def _said(body: bytes) -> str:
    """A refusal in the server's words: those of JSON:API, where it speaks that, else how the body begins."""
    try:
        text = "; ".join(f"{e.get('title')}: {e.get('detail')}" for e in json.loads(body)["errors"])
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        text = body[:2000].decode("utf-8", "replace")
    return " ".join(text.split())[:300]


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
        ("Connection refused", "connection refused"),
        ("Network is unreachable", "network is unreachable"),
        ("connect timeout", "no answer"),
        ("Read timed out", "no answer in time"),
        ("closed connection without response", "connection closed without an answer"),
        ("Connection reset", "connection reset"),
        ("IncompleteRead", "the body is not whole"),
    ):
        if sign in text:
            return words
    return text[:200] or type(error).__name__
