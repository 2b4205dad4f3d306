"""Where a model is: a path or a URL, what it is pinned to, and how it is shown.

Imports nothing above `errors`. URLs carry secrets (passwords before the host, signatures in the
query), so whatever reaches a log or an answer goes through `shown`.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from mms.errors import ArchiveError

Scheme = Literal["file", "http", "https", "s3"]

_SCHEMES: dict[str, Scheme] = {"file": "file", "http": "http", "https": "https", "s3": "s3"}
#: Presigned URLs with a session token have some 2000; this only stops what wastes time.
MAX_URL_CHARS = 8192
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PIN = "#sha256="
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
#: Half surrogate pairs are what is not UTF-8 on a command line.
_REFUSED = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
#: What stays as it is when a URL is brought into one form; `%`, because it may be quoted already.
_PATH_SAFE, _QUERY_SAFE = "/%:=&~+!$,;'@()*", "/%:=&~+!$,;'@()*?[]|"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a model is.

    Attributes:
        text: As it was given.
        scheme: How to get it; ``file`` for a path, too.
        url: The URL in one form, without the pin; for a file ``file://`` and the path.
        path: The path if it is on this machine.
        pin: sha256 that the archive must have, in hex, or "".
    """

    text: str
    scheme: Scheme
    url: str
    path: Path | None
    pin: str

    @property
    def is_remote(self) -> bool:
        """Whether it has to be fetched."""
        return self.path is None

    @property
    def shown(self) -> str:
        """The location without its secrets."""
        return shown(self.text)

    @property
    def key(self) -> str:
        """A name for what belongs to this URL; reveals nothing of it."""
        return hashlib.sha256(self.url.encode(errors="surrogatepass")).hexdigest()


def parse_location(text: str) -> Location:
    """Tell what kind of location a text is.

    Raises:
        ArchiveError: It is a URL that cannot be fetched; says why, and shows no secret.
    """
    rest, separator, pin = text.rpartition(_PIN)
    if not separator:
        rest, pin = text, ""
    elif not _DIGEST.fullmatch(pin := pin.lower()):
        raise ArchiveError(f"{shown(text)}: #sha256= must be followed by 64 hexadecimal digits")
    match = _SCHEME.match(rest)
    if match is None:
        path = Path(os.path.expanduser(rest))
        return Location(text, "file", f"file://{path}", path, pin)
    scheme = _SCHEMES.get(match[1].lower())
    if scheme == "file":
        path = _file_path(rest[match.end() :], text)
        return Location(text, scheme, f"file://{path}", path, pin)
    if scheme is None:
        raise ArchiveError(
            f"{shown(text)}: a model is a file, a folder, or at an http://, https://, s3:// or "
            f"file:// location; {match[0]} is none of these"
        )
    if len(text) > MAX_URL_CHARS:
        raise ArchiveError(f"{shown(text)}: the URL is longer than {MAX_URL_CHARS} characters")
    if _REFUSED.search(rest):
        raise ArchiveError(
            f"{shown(text)}: the URL holds a backslash, a control character, or what is not UTF-8"
        )
    url = _s3_url(rest, text) if scheme == "s3" else _http_url(rest, text)
    return Location(text, scheme, url, None, pin)


def is_remote(text: str) -> bool:
    """Whether a text begins like a URL that is not a file's, valid or not."""
    match = _SCHEME.match(text)
    return match is not None and match[1].lower() != "file"


def shown(text: str) -> str:
    """Return a location for logs and answers: no password, no query, no endless length.

    Works on what is no valid URL, too: that is when it is shown most often.
    """
    match = _SCHEME.match(text)
    if match is None or match[1].lower() == "file":
        return text
    body, separator, pin = text[match.end() :].rpartition(_PIN)
    if not separator or not _DIGEST.fullmatch(pin.lower()):
        body, pin = text[match.end() :], ""
    body = re.split(r"[?#]", body, maxsplit=1)[0]
    authority, slash, path = body.partition("/")
    host = authority.rpartition("@")[2]
    if "@" not in authority and re.search(r":(?!\d*$)(?![^\[]*\])", authority):
        # A password with a slash in it: what follows is not the path but the rest of it.
        return f"{match[1]}://..."
    return _shortened(f"{match[1]}://{host}{slash}{path}") + (f"{_PIN}{pin}" if pin else "")


def _shortened(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


def _file_path(rest: str, text: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ArchiveError(
            f"{shown(text)}: file:// takes an absolute path on this machine, such as file:///x.model"
        )
    path = unquote(f"/{path}")
    if "\0" in path:
        raise ArchiveError(f"{shown(text)}: the path holds a NUL")
    return Path(path)


def _s3_url(rest: str, text: str) -> str:
    bucket, _, key = rest.partition("://")[2].partition("/")
    if not _BUCKET.fullmatch(bucket) or not key:
        raise ArchiveError(f"{shown(text)}: expected s3://BUCKET/KEY")
    if "?" in key:
        raise ArchiveError(f"{shown(text)}: an s3:// location takes no query")
    return f"s3://{bucket}/{key}"


def _http_url(rest: str, text: str) -> str:
    """Bring a URL into one form: small letters in scheme and host, and nothing left unquoted."""
    try:
        parts = urlsplit(rest)
        port = "" if parts.port is None else f":{parts.port}"
        # As the resolver will ask for it.
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError as error:
        # UnicodeError is one, too.
        raise ArchiveError(f"{shown(text)}: not a valid URL ({type(error).__name__})") from None
    if not host:
        raise ArchiveError(f"{shown(text)}: the URL names no host")
    if "#" in rest:
        raise ArchiveError(
            f"{shown(text)}: what follows # must be sha256= and 64 hexadecimal digits"
        )
    user = parts.netloc.rpartition("@")[0]
    user = f"{user}@" if user else ""
    host = f"[{host}]" if ":" in host else host
    path = quote(parts.path, safe=_PATH_SAFE) or "/"
    query = f"?{quote(parts.query, safe=_QUERY_SAFE)}" if parts.query else ""
    return f"{parts.scheme}://{user}{host}{port}{path}{query}"
