"""Nothing hostile gets in, and no refusal repeats what it refuses."""

from __future__ import annotations

import base64
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from sinch_conv_async import (
    InvalidArgumentError,
    Region,
)
from sinch_conv_async._wire import json as _json
from sinch_conv_async._wire.arguments import (
    Credentials,
    basic_authorization,
    checked_credentials,
    checked_id,
    checked_origin,
    checked_proxy,
    regional_origin,
)
from sinch_conv_async._wire.operations import UpdateMetadata
from sinch_conv_async._wire.requests import (
    messages_path,
    token_request,
)
from tests.wire_samples import ORIGIN, PATH, SECRETS, update

# Ids

HOSTILE_IDS = [
    "",
    ".",
    "..",
    "/",
    "a/b",
    "../x",
    "../../evil",
    "./x",
    "%2e%2e",
    "%2e%2e%2fx",
    "a%2Fb",
    "a?b",
    "a?b=c",
    "a#b",
    "a b",
    " a",
    "a ",
    "a\tb",
    "a\r\nHost: evil",
    "a\n",
    "\n",
    "a\x00",
    "\x00",
    "\x7f",
    "a\\b",
    "a;b",
    "a:b",
    "@a",
    "a,b",
    "é",
    "\N{GRINNING FACE}",
    "\ud800",
    "a\udfff",
    "\N{FULLWIDTH FULL STOP}" * 2,
    "\N{ARABIC-INDIC DIGIT ONE}",
    "\N{LATIN SMALL LETTER LONG S}",
    "a" * 257,
    "a" * 100_000,
    "{a}",
    "a*",
    "a'",
    'a"',
    "<a>",
    "a|b",
    "a^b",
    "a`b",
    "[a]",
    "a&b",
    "a=b",
    "a+b",
    "$a",
    "!a",
]
NO_TEXT = [None, 0, 1, True, b"01", bytearray(b"01"), ["01"], ("01",), {"id": "01"}, 1.5, object]
GOOD_IDS = [
    "a",
    "0",
    "-",
    "_",
    "~",
    "...",
    ".a",
    "a..b",
    "~.-_",
    "01FC66621XXXXX119Z8PMV1QPA",
    "a" * 256,
]


@pytest.mark.parametrize("value", HOSTILE_IDS)
def test_an_id_that_could_reach_elsewhere_is_refused(value):
    for check in (lambda: checked_id("message_id", value), lambda: update(value, "x")):
        with pytest.raises(
            InvalidArgumentError, match=r"^message_id must be 1 to 256 letters, digits, "
        ) as caught:
            check()
        assert len(str(caught.value)) < 800
        assert str(caught.value).isascii()
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", NO_TEXT)
def test_an_id_that_is_no_text_is_refused(value):
    for check in (lambda: checked_id("message_id", value), lambda: update(value, "x")):
        with pytest.raises(
            InvalidArgumentError, match=rf"^message_id must be a str, not {type(value).__name__}$"
        ):
            check()


@pytest.mark.parametrize("value", GOOD_IDS)
def test_an_id_of_unreserved_characters_is_the_last_part_of_the_path_as_it_is(value):
    assert checked_id("message_id", value) == value
    request = update(value, "x")
    assert str(request.url) == ORIGIN + PATH + value
    assert request.url.raw_path == PATH + value
    assert request.message_id == value


def test_the_path_of_a_message_is_the_specifications():
    assert messages_path("project-1") == PATH


def test_an_id_may_be_a_subclass_of_str():
    class Id(str):
        __slots__ = ()

    assert str(update(Id("01"), "x").url) == f"{ORIGIN}{PATH}01"
    with pytest.raises(InvalidArgumentError):
        update(Id("../01"), "x")


@given(st.text(st.characters(exclude_categories=[])) | st.text("./%~-_?#\\ab0\r\n", max_size=8))
def test_whatever_the_id_is_no_other_path_is_reached(value):
    try:
        url = update(value, "x").url
    except InvalidArgumentError:
        assert re.fullmatch(r"[A-Za-z0-9._~-]{1,256}", value) is None or value in (".", "..")
    else:
        assert url == URL(ORIGIN + PATH) / value
        assert (url.host, url.raw_query_string, url.raw_fragment) == (
            "eu.conversation.api.sinch.com",
            "",
            "",
        )


# Metadata


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "x",
        '{"ticket": "closed"}',
        "x" * 1024,
        "\N{GRINNING FACE}" * 1024,
        "é" * 1024,
        "\x00\x01\x1f\x7f\u2028\ufeff\uffff",
        "\"\\/\b\f\n\r\t'",
        "null",
    ],
)
def test_metadata_of_at_most_1024_characters_is_sent_as_it_is(metadata):
    request = update("01", metadata)
    assert (request.method, request.content_type) == ("PATCH", "application/json")
    assert request.body.startswith(b'{"metadata": "')
    assert json.loads(request.body) == {"metadata": metadata}


@pytest.mark.parametrize(
    ("metadata", "length"),
    [("x" * 1025, "1,025"), ("\N{GRINNING FACE}" * 1025, "1,025"), ("x" * 10**6, "1,000,000")],
)
def test_metadata_that_is_too_long_is_refused_with_its_length(metadata, length):
    with pytest.raises(
        InvalidArgumentError, match=rf"^metadata must be at most 1,024 characters, not {length}$"
    ):
        update("01", metadata)


@pytest.mark.parametrize("metadata", ["\ud800", "a\udc00", "\udc80canary"])
def test_metadata_with_a_lone_surrogate_is_refused(metadata):
    with pytest.raises(InvalidArgumentError, match=r"^metadata must encode to UTF-8") as caught:
        update("01", metadata)
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("metadata", NO_TEXT)
def test_metadata_that_is_no_text_is_refused(metadata):
    with pytest.raises(
        InvalidArgumentError, match=rf"^metadata must be a str, not {type(metadata).__name__}$"
    ):
        update("01", metadata)


@given(st.text(st.characters(exclude_categories=[]), max_size=30))
def test_whatever_the_metadata_is_it_is_sent_whole_or_refused(metadata):
    try:
        body = update("01", metadata).body
    except InvalidArgumentError:
        assert any(0xD800 <= ord(character) <= 0xDFFF for character in metadata)
    else:
        assert json.loads(body) == {"metadata": metadata}


def test_the_body_is_the_same_without_the_speedups(monkeypatch):
    metadata = 'é "\\\n\N{GRINNING FACE}'
    body = update("01", metadata).body
    monkeypatch.setattr(_json, "dump_text", _json._dump_text_json)
    assert update("01", metadata).body == body


def test_a_request_shows_no_body():
    assert "canary" not in repr(update("01", "canary"))


# Origins and regions


@pytest.mark.parametrize("region", [*Region, "us", "eu", "br", "US", "Eu"])
def test_a_region_has_its_origin(region):
    assert (
        regional_origin(region)
        == f"https://{Region(region.lower()).value}.conversation.api.sinch.com"
    )


@pytest.mark.parametrize(
    "region", ["", "au", "us.evil.example/", "us ", None, 1, True, b"us", [], {}]
)
def test_an_unknown_region_is_refused(region):
    with pytest.raises(
        InvalidArgumentError, match=r"^conversation_region must be one of 'us', 'eu', 'br'$"
    ) as caught:
        regional_origin(region)
    assert caught.value.__context__ is None


ORIGINS = {
    "https://us.conversation.api.sinch.com": "https://us.conversation.api.sinch.com",
    "https://us.conversation.api.sinch.com/": "https://us.conversation.api.sinch.com",
    "HTTPS://US.Conversation.API.sinch.com": "https://us.conversation.api.sinch.com",
    "https://api.example:443": "https://api.example",
    "https://api.example:8443": "https://api.example:8443",
    "https://api.example.": "https://api.example.",
    "https://under_score.example": "https://under_score.example",
    "https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
    "https://10.0.0.1": "https://10.0.0.1",
    "https://[2001:db8::1]:8443": "https://[2001:db8::1]:8443",
    "http://localhost": "http://localhost",
    "http://LOCALHOST:8080": "http://localhost:8080",
    "http://127.0.0.1:8080/": "http://127.0.0.1:8080",
    "http://127.1.2.3": "http://127.1.2.3",
    "http://[::1]:8080": "http://[::1]:8080",
}


@pytest.mark.parametrize("value", ORIGINS)
def test_an_origin_is_a_scheme_a_host_and_a_port(value):
    origin = checked_origin("conversation_origin", value)
    assert origin == ORIGINS[value]
    assert checked_origin("conversation_origin", origin) == origin
    assert UpdateMetadata.of(origin, PATH, "01", "x").request.url.origin() == URL(origin)
    assert str(token_request(origin).url) == f"{origin}/oauth2/token"


@pytest.mark.parametrize(
    "value",
    [
        "http://us.conversation.api.sinch.com",
        "http://127.0.0.1.evil.example",
        "http://localhost.evil.example",
        "http://evil-localhost",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "http://128.0.0.1",
        "http://2130706433",
        "http://0x7f000001",
        "http://[::]",
        "http://[2001:db8::1]",
        "http://[::ffff:10.0.0.1]",
        "http://xn--lcalhost-b1a",
    ],
)
def test_http_is_for_this_machine_only(value):
    with pytest.raises(
        InvalidArgumentError, match=r"^auth_origin must be https; http is for this machine only"
    ):
        checked_origin("auth_origin", value)


@pytest.mark.parametrize(
    "value",
    [
        "https://canary:canary@api.example",
        "https://canary@api.example",
        "https://:canary@api.example",
        "https://@api.example",
        "http://127.0.0.1@evil.example",
        "http://127.0.0.1:80@evil.example",
        "https://api.example/v1",
        "https://api.example//",
        "https://api.example/?a=b",
        "https://api.example?canary",
        "https://api.example?",
        "https://api.example#canary",
        "https://api.example/#",
    ],
)
def test_an_origin_with_more_than_an_origin_is_refused_and_not_repeated(value):
    with pytest.raises(
        InvalidArgumentError, match=r"^auth_origin must be an origin alone, without user, "
    ) as caught:
        checked_origin("auth_origin", value)
    assert "canary" not in str(caught.value)


NO_HOSTS = [
    "",
    " ",
    "/",
    "api.example",
    "//api.example",
    "https:",
    "https://",
    "https:///",
    "https:api.example",
    "https://:443",
    "ftp://api.example",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "ws://localhost",
    "data:,x",
    "https+x://a.example",
    "https://api.example:canary",
    "https://api.example:65536",
    "https://api.example:-1",
    "https://[::1",
    "https://[canary]",
    "https://a b",
    "https://a,b",
    'https://a"b',
    "https://<a>",
    "https://{a}",
    "https://a%2fb",
    "https://%65xample",
    "https://a..b",
    "https://.",
    "https://.a",
    f"https://{'a' * 64}.example",
    f"https://{'a.' * 127}example",
    "https://xn--a",
    "https://xn--zzzzzzz--",
    "https://good.example\\@evil.example",
    "https://good.example\\.evil",
]


@pytest.mark.parametrize(
    "value",
    [
        *NO_HOSTS,
        "https://bücher.example",
        "https://\N{CYRILLIC SMALL LETTER A}pi.example",
        "https://api.example\n",
        "https://api.example\r\nHost: evil",
        "https://api.ex\tample",
        "https://api.example\x00",
        "https://\x00api.example",
        "https://api.example\u2044",
        "http://127.0.0.1\uff0eevil.example",
        "https://\ud800",
    ],
)
def test_what_has_no_host_that_can_be_looked_up_is_no_origin(value):
    with pytest.raises(
        InvalidArgumentError, match=r"^auth_origin must be an origin such as https://"
    ) as caught:
        checked_origin("auth_origin", value)
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("value", [*NO_TEXT, URL("https://api.example")])
def test_an_origin_that_is_no_text_is_refused(value):
    with pytest.raises(
        InvalidArgumentError, match=rf"^auth_origin must be a str, not {type(value).__name__}$"
    ):
        checked_origin("auth_origin", value)


URLS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["http://", "https://", "HTTP:", "//", ""]),
        st.sampled_from(["", "u@", "u:p@", "127.0.0.1@", "\\"]),
        st.sampled_from(
            ["localhost", "127.0.0.1", "[::1]", "api.example", "xn--a", "xn--bcher-kva.example", ""]
        )
        | st.text("a.-_%2eé[]:\\\ud800", max_size=6),
        st.sampled_from(["", ":80", ":0", ":x", ":99999", ".evil.example"]),
        st.sampled_from(["", "/", "/.", "//", "/a", "?", "?a", "#", "#a", "\n"]),
    ),
)


@given(URLS | st.text(st.characters(exclude_categories=[])))
def test_whatever_is_given_as_an_origin_is_one_that_is_safe_or_refused(value):
    try:
        origin = checked_origin("auth_origin", value)
    except InvalidArgumentError:
        return
    url = URL(origin)
    assert str(url.origin()) == origin
    assert url.scheme == "https" or url.host in ("localhost", "127.0.0.1", "::1")
    assert checked_origin("auth_origin", origin) == origin


# Proxies


@pytest.mark.parametrize(
    ("value", "url", "pair"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128", None),
        ("https://proxy.example", "https://proxy.example", None),
        (URL("http://10.0.0.1:3128"), "http://10.0.0.1:3128", None),
        ("http://[::1]:3128", "http://[::1]:3128", None),
        ("http://me:canary@proxy.example:3128", "http://proxy.example:3128", "me:canary"),
        ("http://me@proxy.example:3128", "http://proxy.example:3128", "me:"),
        ("http://:canary@proxy.example:3128", "http://proxy.example:3128", ":canary"),
        (
            "http://m%40e:c%3Aa%2Fn%20%C3%A9@proxy.example:3128",
            "http://proxy.example:3128",
            "m@e:c:a/n é",
        ),
        ("http://me:ca%0D%0Anary@proxy.example:3128", "http://proxy.example:3128", "me:ca\r\nnary"),
    ],
)
def test_a_proxy_is_its_url_and_its_credentials_apart(value, url, pair):
    proxy = checked_proxy(value)
    assert str(proxy.url) == url
    if pair is None:
        assert proxy.headers() == {}
    else:
        (header,) = proxy.headers().items()
        assert header == (
            "Proxy-Authorization",
            "Basic " + base64.b64encode(pair.encode()).decode(),
        )
    assert "canary" not in repr(proxy)
    assert base64.b64encode(b"me:canary").decode() not in repr(proxy)


def test_no_proxy_is_none():
    assert checked_proxy(None) is None


@pytest.mark.parametrize(
    "value", [*NO_HOSTS, "socks5://me:canary@proxy.example", URL(), URL("/proxy")]
)
def test_what_is_no_proxy_is_told_without_its_text(value):
    assert (
        checked_proxy(value)
        == "proxy must be a URL such as http://user:password@proxy.example:3128"
    )


@pytest.mark.parametrize(
    "value",
    [0, True, b"http://proxy.example", ["http://proxy.example"], object()],
    ids=lambda value: type(value).__name__,
)
def test_a_proxy_that_is_no_text_is_told(value):
    assert checked_proxy(value) == f"proxy must be a str or yarl.URL, not {type(value).__name__}"


def test_a_proxy_whose_password_has_no_bytes_is_told():
    url = URL("http://me:\ud800@proxy.example", encoded=True)
    assert checked_proxy(url) == "proxy must have a user and a password that encode to UTF-8"


@given(URLS | st.text(st.characters(exclude_categories=[])))
@example("http://u:\ud800@h")
def test_whatever_is_given_as_a_proxy_is_one_or_told(value):
    proxy = checked_proxy(value)
    assert isinstance(proxy, str) or (proxy.url.user, proxy.url.password) == (None, None)


# Credentials


@pytest.mark.parametrize("name", ["key_id", "key_secret"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "must be printable text, without CR, LF or NUL"),
        ("canary\r\nX-Evil: 1", "must be printable text, without CR, LF or NUL"),
        ("canary\n", "must be printable text, without CR, LF or NUL"),
        ("canary\r", "must be printable text, without CR, LF or NUL"),
        ("\x00canary", "must be printable text, without CR, LF or NUL"),
        ("canary\x7f", "must be printable text, without CR, LF or NUL"),
        ("canary\u2028", "must be printable text, without CR, LF or NUL"),
        ("canary\ud800", "must be printable text, without CR, LF or NUL"),
        ("canaryé", "must be ASCII"),
        (None, "must be a str, not NoneType"),
        (b"canary", "must be a str, not bytes"),
        (5, "must be a str, not int"),
        (["canary"], "must be a str, not list"),
    ],
)
def test_credentials_that_no_header_can_carry_are_told_without_their_text(name, value, problem):
    assert (
        checked_credentials(**{"key_id": "id", "key_secret": "secret", name: value})
        == f"{name} {problem}"
    )


def test_a_key_id_with_a_colon_is_told():
    assert checked_credentials("a:b", "c") == "key_id must not contain ':' (RFC 7617, section 2)"


@pytest.mark.parametrize("secret", [*SECRETS, "with:colon", "x" * 4096])
def test_basic_authorization_is_key_id_and_secret(secret):
    credentials = checked_credentials("my-id", secret)
    scheme, _, text = basic_authorization(credentials).partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(text).decode() == f"my-id:{secret}"


@pytest.mark.parametrize("secret", SECRETS)
def test_a_repr_shows_no_secret_in_any_spelling(secret):
    credentials = Credentials("my-id", secret)
    assert repr(credentials) == "Credentials(key_id='my-id')"


def test_credentials_are_a_value():
    assert Credentials("id", "a") == Credentials("id", "a")
    assert hash(Credentials("id", "a")) == hash(Credentials("id", "a"))
    assert Credentials("id", "a") != Credentials("id", "b")


def test_checking_credentials_raises_nothing_whose_frames_could_hold_them():
    for pair in [("canary\n", "canary"), ("id", "canary\n"), (None, "canary")]:
        assert isinstance(checked_credentials(*pair), str)
