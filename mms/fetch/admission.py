"""Admission policy: what callers of the management APIs may load.

Locations that the operator names in flags, environment or configuration are not checked.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mms.errors import ConfigError, Forbidden, ModelNotFound
from mms.fetch.location import is_remote, parse_location, shown

#: A path is unquoted at most this often to find ``..`` in it; a server may do so twice.
_MAX_UNQUOTINGS = 5
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Policy:
    """What callers other than the operator may have fetched.

    Attributes:
        patterns: Each matches whole URLs; one that matches permits the URL.
        allow_private: Whether addresses inside this network or of this machine are permitted.
    """

    patterns: tuple[re.Pattern[str], ...] = ()
    allow_private: bool = False

    def check_url(self, url: str) -> None:
        """Refuse a URL that no pattern permits; called for each redirect, too.

        Args:
            url: As `Location.url` gives it.

        Raises:
            Forbidden: It is not permitted.
        """
        if self.patterns and (_has_user(url) or _climbs(url)):
            # Where such a URL leads is not what a pattern sees.
            raise Forbidden(f"{shown(url)}: a URL must not have a user name, or .. in its path")
        if not any(pattern.fullmatch(url) for pattern in self.patterns):
            raise Forbidden(f"{shown(url)}: the server's allowed_urls does not permit this URL")

    def check_address(self, host: str, address: str) -> None:
        """Refuse an address that is not public, just before it is connected to.

        Raises:
            Forbidden: It is private, and private ones are not allowed.
        """
        if not self.allow_private and not self.is_public(address):
            raise Forbidden(
                f"{host} is inside this network or on this machine; the server must be started "
                "with allow_private_urls to fetch from there"
            )

    def is_public(self, address: str) -> bool:
        """Whether an IP address is public."""
        return is_public(address)


def parse_policy(allowed_urls: Sequence[str], allow_private: bool) -> Policy:
    """Return the policy of two settings.

    Args:
        allowed_urls: Regular expressions.
        allow_private: See Policy.

    Raises:
        ConfigError: One of them is not valid.
    """
    patterns = []
    for text in allowed_urls:
        try:
            patterns.append(re.compile(text))
        except re.error as error:
            raise ConfigError(
                f"allowed_urls: {text!r} is not a regular expression: {error}"
            ) from None
    return Policy(tuple(patterns), allow_private)


def admit(url: str, model_store: str, policy: Policy) -> str:
    """Return the location for a ``url`` that a caller sent: in the model store, or permitted.

    Raises:
        Forbidden: It is neither.
        ModelNotFound: The store has no such archive.
        ArchiveError: It is not valid.
    """
    if not model_store and not policy.patterns:
        raise Forbidden(
            "no model store: start the server with --model-store DIR to register models"
        )
    if "\0" in url:
        raise Forbidden("the url contains a NUL character")
    if is_remote(url):
        if not policy.patterns:
            raise Forbidden(
                f"only archives in the model store can be registered, not {shown(url)}; "
                "the server's allowed_urls can permit more"
            )
        if not url.lower().startswith(("http://", "https://", "s3://")):
            raise Forbidden(f"{shown(url)}: only http://, https://, s3:// and file:// are fetched")
        policy.check_url(parse_location(url).url)
        return url
    name, separator, pin = url.partition("#sha256=")
    if name.startswith(("file:///", "file://localhost/")):
        name = str(parse_location(name).path)
    # os.path raises nothing, whatever the length of a name and the target of a link.
    path = Path(os.path.realpath(Path(model_store, name.removeprefix("file://"))))
    if not (model_store and _is_inside(path, Path(os.path.realpath(model_store)))):
        if not policy.patterns:
            raise Forbidden(f"{url[:200]!r} is not in the model store")
        # Links and .. are resolved: patterns match the real path.
        policy.check_url(f"file://{path}")
    if not os.path.exists(path):
        raise ModelNotFound(f"Model not found in model store: {url[:200]}")
    return f"{path}{separator}{pin}"


def check_place(location: str, model_store: str, policy: Policy) -> None:
    """Refuse the path of an archive that callers could not have registered.

    Args:
        location: As it was registered. What is remote is checked when it is fetched.
        model_store: Folder of the archives that callers may register.
        policy: What else they may.

    Raises:
        Forbidden: It is neither in the model store nor permitted.
    """
    path = parse_location(location).path
    if path is None:
        return
    real = os.path.realpath(path)
    if model_store and Path(real).is_relative_to(os.path.realpath(model_store)):
        return
    if not policy.patterns:
        raise Forbidden(f"{location} is not in the model store")
    policy.check_url(f"file://{real}")


def is_public(address: str) -> bool:
    """Whether an IP address is public: not private, local, shared or multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # These forms reach an IPv4 address.
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        return ip.is_global and ip in _GLOBAL_IPV6
    return ip.is_global and not ip.is_multicast


def _is_inside(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder) and path != folder


def _has_user(url: str) -> bool:
    return not url.startswith(("file://", "s3://")) and "@" in urlsplit(url).netloc


def _climbs(url: str) -> bool:
    """Whether a path contains ``..``, quoted or behind a semicolon as well."""
    path = url.partition("://")[2].partition("?")[0]
    for _ in range(_MAX_UNQUOTINGS):
        if ".." in re.split(r"[/\\;]", path):
            return True
        unquoted = unquote(path)
        if unquoted == path:
            return False
        path = unquoted
    return True
