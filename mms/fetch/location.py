"""A model's location: a path or a URL, its pin, and how it is shown.

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
#: Presigned URLs with a session token have about 2000; this only bounds the work for longer ones.
MAX_URL_CHARS = 8192
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PIN = "#sha256="
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
#: Lone surrogates stand for bytes of a command line that are not UTF-8.
_REFUSED = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
#: Characters that stay when a URL is normalized; `%`, because it may be quoted already.
_PATH_SAFE, _QUERY_SAFE = "/%:=&~+!$,;'@()*", "/%:=&~+!$,;'@()*?[]|"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a model is.

    Attributes:
        text: As it was given.
        scheme: How to get it; ``file`` for a path, too.
        url: The URL, normalized and without the pin; for a file ``file://`` and the path.
        path: The path if it is on this machine.
        pin: The sha256 that the archive must have, in hex, or "".
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
        """A file name for what belongs to this URL; reveals nothing of it."""
        return hashlib.sha256(self.url.encode(errors="surrogatepass")).hexdigest()


def parse_location(text: str) -> Location:
    """Return the location that a text names.

    Raises:
        ArchiveError: It is a URL that cannot be fetched; says why, and contains no secret.
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
            f"{shown(text)}: {match[0]} is not supported; expected a file, a folder, or an "
            "http://, https://, s3:// or file:// URL"
        )
    if len(text) > MAX_URL_CHARS:
        raise ArchiveError(f"{shown(text)}: the URL is longer than {MAX_URL_CHARS} characters")
    if _REFUSED.search(rest):
        raise ArchiveError(
            f"{shown(text)}: the URL contains a backslash, a control character or invalid UTF-8"
        )
    url = _s3_url(rest, text) if scheme == "s3" else _http_url(rest, text)
    return Location(text, scheme, url, None, pin)


def is_remote(text: str) -> bool:
    """Whether a text starts like a URL other than file://, valid or not."""
    match = _SCHEME.match(text)
    return match is not None and match[1].lower() != "file"


def file_name(text: str) -> str:
    """Return the name of the file at a remote location, which a cache does not keep.

    Returns:
        "" for a path, and for a URL that ends in no name.
    """
    if not is_remote(text):
        return ""
    return unquote(re.split(r"[?#]", text, maxsplit=1)[0].partition("://")[2].rpartition("/")[2])


def shown(text: str) -> str:
    """Return a location for logs and replies: without password and query, and of limited length.

    Accepts invalid URLs, too: these are shown most often.
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
        # A password with a slash in it: what follows is not the path but its rest.
        return f"{match[1]}://..."
    return _shortened(f"{match[1]}://{host}{slash}{path}") + (f"{_PIN}{pin}" if pin else "")


def _shortened(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


def _file_path(rest: str, text: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ArchiveError(
            f"{shown(text)}: file:// requires an absolute path on this machine, such as "
            "file:///x.model"
        )
    path = unquote(f"/{path}")
    if "\0" in path:
        raise ArchiveError(f"{shown(text)}: the path contains a NUL character")
    return Path(path)


def _s3_url(rest: str, text: str) -> str:
    bucket, _, key = rest.partition("://")[2].partition("/")
    if not _BUCKET.fullmatch(bucket) or not key:
        raise ArchiveError(f"{shown(text)}: expected s3://BUCKET/KEY")
    if "?" in key:
        raise ArchiveError(f"{shown(text)}: an s3:// URL cannot have a query")
    return f"s3://{bucket}/{key}"


def _http_url(rest: str, text: str) -> str:
    """Normalize a URL: lower case in scheme and host, and everything else quoted."""
    try:
        parts = urlsplit(rest)
        port = "" if parts.port is None else f":{parts.port}"
        # As it will be resolved.
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError as error:
        # UnicodeError is one, too.
        raise ArchiveError(f"{shown(text)}: not a valid URL ({type(error).__name__})") from None
    if not host:
        raise ArchiveError(f"{shown(text)}: the URL has no host")
    if "#" in rest:
        raise ArchiveError(
            f"{shown(text)}: the only supported fragment is #sha256= with 64 hexadecimal digits"
        )
    user = parts.netloc.rpartition("@")[0]
    user = f"{user}@" if user else ""
    host = f"[{host}]" if ":" in host else host
    path = quote(parts.path, safe=_PATH_SAFE) or "/"
    query = f"?{quote(parts.query, safe=_QUERY_SAFE)}" if parts.query else ""
    return f"{parts.scheme}://{user}{host}{port}{path}{query}"
