"""Locations: what is one, what is shown of it, and what others than the operator may name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms.config.build import build_config
from mms.errors import ArchiveError, ConfigError, Forbidden
from mms.fetch.admission import Policy, is_public, parse_policy
from mms.fetch.location import MAX_URL_CHARS, is_remote, parse_location, shown

DIGEST = "0123456789abcdef" * 4
INSIDE = (
    "127.0.0.1 127.8.9.1 10.0.0.1 172.16.0.1 192.168.1.1 100.64.0.1 169.254.169.254 0.0.0.0 "
    "224.0.0.1 255.255.255.255 192.0.2.1 198.18.0.1 240.0.0.1 ::1 :: fe80::1 fe80::1%eth0 "
    "fc00::1 fd00:ec2::254 ff02::1 fec0::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 "
    "64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b:1::1 2002:7f00:1:: 2002:a9fe:a9fe:: 2001::1 "
    "2001:db8::1"
)
OUTSIDE = "8.8.8.8 1.1.1.1 2001:4860:4860::8888 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::"

REMOTE = [
    ("http://host/x.model", "http", "http://host/x.model"),
    ("HTTPS://Host.Example/X.model", "https", "https://host.example/X.model"),
    ("https://host", "https", "https://host/"),
    ("https://host:8443/x?sig=a=b&c", "https", "https://host:8443/x?sig=a=b&c"),
    ("https://host/my model.model", "https", "https://host/my%20model.model"),
    ("https://host/my%20model.model", "https", "https://host/my%20model.model"),
    ("https://host/größe", "https", "https://host/gr%C3%B6%C3%9Fe"),
    ("https://bücher.example/", "https", "https://xn--bcher-kva.example/"),
    ("https://user:p%40ss@host/x", "https", "https://user:p%40ss@host/x"),
    ("https://[::1]:80/x", "https", "https://[::1]:80/x"),
    ("s3://bucket/a/b.model", "s3", "s3://bucket/a/b.model"),
    ("S3://bucket/a/b model", "s3", "s3://bucket/a/b model"),
]


@pytest.mark.parametrize(("text", "scheme", "url"), REMOTE)
@pytest.mark.parametrize("pin", ["", DIGEST, DIGEST.upper()])
def test_a_url_is_brought_into_one_form_and_its_pin_taken_off(
    text: str, scheme: str, url: str, pin: str
) -> None:
    location = parse_location(text + (f"#sha256={pin}" if pin else ""))
    assert (location.scheme, location.url, location.path) == (scheme, url, None)
    assert location.pin == pin.lower()
    assert location.is_remote
    assert is_remote(text)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("x.model", "x.model"),
        ("/models/a=b?c#d.model", "/models/a=b?c#d.model"),
        ("a:b/c", "a:b/c"),
        ("~/x.model", str(Path.home() / "x.model")),
        ("file:///models/x.model", "/models/x.model"),
        ("FILE://localhost/models/my%20x.model", "/models/my x.model"),
        (f"x.model#sha256={DIGEST}", "x.model"),
        (f"file:///x.model#sha256={DIGEST}", "/x.model"),
    ],
)
def test_anything_else_is_a_path(text: str, path: str) -> None:
    location = parse_location(text)
    assert location.path == Path(path)
    assert location.pin == (DIGEST if "sha256" in text else "")
    assert not location.is_remote
    assert not is_remote(text)
    assert location.shown == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://host/x", "ftp:// is not supported"),
        ("gopher://host/x", "not supported"),
        ("http://", "has no host"),
        ("http:///x", "has no host"),
        ("http://[::1/x", "not a valid URL"),
        ("http://host:port/x", "not a valid URL"),
        ("http://host:99999/x", "not a valid URL"),
        (f"http://{'a' * 64}.example/x", "not a valid URL"),
        ("http://host/x\r\nHost: evil", "control character"),
        ("http://host\\@evil/x", "backslash"),
        ("http://host/\udcff", "invalid UTF-8"),
        ("s3://bucket/\ud800", "invalid UTF-8"),
        ("http://host/x#sha265=abc", "only supported fragment"),
        ("http://host/x#sha256=abc", "64 hexadecimal digits"),
        (f"http://host/x#sha256={DIGEST}0", "64 hexadecimal digits"),
        ("x.model#sha256=", "64 hexadecimal digits"),
        ("s3://bucket", "s3://BUCKET/KEY"),
        ("s3://bucket/", "s3://BUCKET/KEY"),
        ("s3:///key", "s3://BUCKET/KEY"),
        ("s3://arn:aws:s3/key", "s3://BUCKET/KEY"),
        ("s3://bucket/key?versionId=1", "cannot have a query"),
        ("file://host/x", "absolute path"),
        ("file://x", "absolute path"),
        ("file:///x%00", "NUL"),
        (f"http://host/{'x' * MAX_URL_CHARS}", "longer than"),
    ],
)
def test_what_cannot_be_fetched_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ArchiveError, match=said):
        parse_location(text)


@given(st.text() | st.builds("{}://{}".format, st.sampled_from(["http", "s3", "file"]), st.text()))
def test_whatever_is_given_is_a_location_or_an_archive_error(text: str) -> None:
    shown(text)
    try:
        location = parse_location(text)
    except ArchiveError:
        return
    assert location.is_remote == is_remote(text)
    if location.is_remote:
        # One form: there is nothing left to change.
        assert parse_location(location.url).url == location.url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://u:SECRET@host/x.model?sig=SECRET", "https://host/x.model"),
        ("https://SECRET@host/x", "https://host/x"),
        ("https://host?SECRET", "https://host"),
        ("https://host/x#SECRET", "https://host/x"),
        ("https://u:SE/CRET@host/x", "https://..."),
        ("https://u:a@b:SECRET@host/x", "https://host/x"),
        ("https://[::1]:80/x?SECRET", "https://[::1]:80/x"),
        ("https://host:80/@scope/x", "https://host:80/@scope/x"),
        ("ftp://u:SECRET@host/x", "ftp://host/x"),
        (f"s3://b/k#sha256={DIGEST}", f"s3://b/k#sha256={DIGEST}"),
        (f"https://h/x?SECRET#sha256={DIGEST}", f"https://h/x#sha256={DIGEST}"),
        ("https://h/x?SECRET#sha256=SECRET", "https://h/x"),
        (f"https://h/{'x' * 400}", f"https://h/{'x' * 290}..."),
    ],
)
def test_secrets_are_not_shown(text: str, expected: str) -> None:
    assert shown(text) == expected


@given(
    st.sampled_from(["http", "https", "HTTPS", "ftp"]),
    st.text(max_size=20),
    st.text(max_size=20),
)
def test_no_password_and_no_query_is_ever_shown(scheme: str, before: str, after: str) -> None:
    # The marker does not occur in what surrounds it.
    secret = "\U0001f511\U0001f5dd"
    for text in (
        f"{scheme}://user:{before.replace('/', '')}{secret}@host/path",
        f"{scheme}://host/path?{before}{secret}{after}",
        f"{scheme}://host/path#{before}{secret}{after}",
    ):
        assert secret not in shown(text)


def test_urls_have_keys_of_their_own_that_reveal_nothing() -> None:
    first = parse_location("https://host/x?sig=secret")
    assert first.key == parse_location(f"https://HOST/x?sig=secret#sha256={DIGEST}").key
    assert first.key != parse_location("https://host/x?sig=other").key
    assert len(first.key) == 64
    assert first.key.isalnum()


def policy_of(allowed_urls: str) -> Policy:
    """Return the policy of a setting as it is written on a command line."""
    settings = build_config([], {"allowed_urls": allowed_urls}, {}).server
    return parse_policy(settings.allowed_urls, False)


class TestPolicy:
    @pytest.mark.parametrize(
        ("setting", "count"),
        [
            ("", 0),
            ("  ", 0),
            ("https://a/.*", 1),
            ("https://a/.*,https://b/.*", 2),
            ("https://a/.*, s3://b/.*,file:///c/.*", 3),
            ("https?://a/.*,(https|s3)://b/.*,(?:http)://c/.*", 3),
            (r"https://a/\d{1,3}\.model", 1),
            ("https://a/[x,y].model", 1),
        ],
    )
    def test_patterns_are_separated_by_commas_before_a_scheme(
        self, setting: str, count: int
    ) -> None:
        assert len(policy_of(setting).patterns) == count

    def test_a_file_may_list_them(self, tmp_path: Path) -> None:
        file = tmp_path / "mms.yaml"
        file.write_text("allowed_urls: ['https://a/.*', 's3://b/.{1,3}']")
        policy = parse_policy(build_config([], {}, {}, file).server.allowed_urls, False)
        assert [pattern.pattern for pattern in policy.patterns] == ["https://a/.*", "s3://b/.{1,3}"]

    def test_a_comma_in_a_pattern_permits_nothing_that_was_not_meant(self) -> None:
        policy = policy_of("https://a/x,.*")
        policy.check_url("https://a/x,y")
        with pytest.raises(Forbidden):
            policy.check_url("https://b/")

    def test_a_pattern_that_is_none_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"allowed_urls: 'https://\[' is not"):
            parse_policy(["https://["], False)

    @pytest.mark.parametrize(
        "url",
        [
            "http://models.example.com/x.model",
            "https://models.example.com.evil.example/x.model",
            "https://evil.example/https://models.example.com/x.model",
            "https://models.example.com:444/x.model",
            "https://models.example.com@evil.example/x.model",
            "https://user@models.example.com/x.model",
            "https://models.example.com./x.model",
            "https://models.example.com/../x.model",
            "https://models.example.com/a/%2e%2e/x.model",
            "https://models.example.com/a/%252e%252e/x.model",
            "https://models.example.com/a/..;/x.model",
            "https://models.example.com/a/.%2e%3b/x.model",
            "https://models.example.com/a/..%5cx.model",
            "https://models.example.com/%2525252525252e",
            "https://modelsXexample.com/x.model",
            "s3://other/x.model",
            "s3://models/../x.model",
            "file:///etc/passwd",
        ],
    )
    def test_what_no_pattern_matches_whole_is_refused(self, url: str) -> None:
        policy = parse_policy([r"https://models\.example\.com/.*", r"s3://models/.*"], True)
        with pytest.raises(Forbidden):
            policy.check_url(parse_location(url).url)

    def test_even_a_careless_pattern_lets_nobody_climb_or_bring_a_user_name(self) -> None:
        policy = parse_policy([r"https://models.example.com.*"], True)
        for url in (
            "https://models.example.com@evil.example/x",
            "https://models.example.com/a/../../x",
        ):
            with pytest.raises(Forbidden, match=r"must not have a user name, or \.\. in its path"):
                policy.check_url(url)

    @pytest.mark.parametrize(
        "url",
        [
            "https://models.example.com/x.model",
            "https://MODELS.example.com/a/b/x..y.model",
            "https://models.example.com/x.model?signature=a%2Fb==",
            "https://models.example.com/x.model?path=../y",
            "s3://models/x.model",
        ],
    )
    def test_what_a_pattern_matches_is_permitted(self, url: str) -> None:
        policy = parse_policy([r"https://models\.example\.com/.*", r"s3://models/.*"], True)
        policy.check_url(parse_location(url).url)

    def test_without_patterns_nothing_is_permitted(self) -> None:
        with pytest.raises(Forbidden, match="allowed_urls"):
            Policy().check_url("https://models.example.com/x.model")

    def test_the_refusal_shows_no_secret(self) -> None:
        with pytest.raises(Forbidden) as caught:
            Policy().check_url("https://u:SECRET@host/x?SECRET")
        assert "SECRET" not in str(caught.value)

    @pytest.mark.parametrize(
        "address",
        INSIDE.split(),
    )
    def test_addresses_inside_are_refused_unless_they_are_allowed(self, address: str) -> None:
        assert not is_public(address)
        with pytest.raises(Forbidden, match="allow_private_urls"):
            Policy().check_address("host", address)
        Policy(allow_private=True).check_address("host", address)

    @pytest.mark.parametrize(
        "address",
        OUTSIDE.split(),
    )
    def test_addresses_of_the_internet_are_allowed(self, address: str) -> None:
        assert is_public(address)
        Policy().check_address("host", address)
