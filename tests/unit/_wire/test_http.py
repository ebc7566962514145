"""What is sent and what is understood: nothing hostile gets in, and no secret gets out."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import re
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict
from yarl import URL

from sinch_conv_async import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    ConversationMessage,
    InvalidArgumentError,
    MessagesSource,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    Region,
    ResponseFormatError,
    ServerError,
    TokenError,
    TransportError,
)
from sinch_conv_async._wire import json as _json
from sinch_conv_async._wire.failure import Failure
from sinch_conv_async._wire.http import (
    MAX_ANSWER,
    Credentials,
    Response,
    TokenResponse,
    basic_authorization,
    checked_credentials,
    checked_id,
    checked_origin,
    checked_proxy,
    messages_path,
    read_token_answer,
    regional_origin,
    request_head,
    request_headers,
    retry_after,
    serialized,
    token_request,
)
from sinch_conv_async._wire.operations import UpdateMetadata

ORIGIN = "https://eu.conversation.api.sinch.com"
PATH = "/v1/projects/project-1/messages/"
SECRETS = [
    "s3cr3t~with.usual_characters-",
    'q"u\\o/te',
    "a&b<c>d='e'",
    "with space",
    "per%cent+plus",
    "ends==",
    "space and/slash",  # differs in every way of quoting
    "abW",  # with this id its Basic form ends with an X and no padding
    "\\begins-with-a-backslash",  # is a part of its own form in JSON
    "ends&",  # is the beginning of its own form in HTML
]


def update(message_id="01", metadata="x", source=None):
    return UpdateMetadata.of(ORIGIN, PATH, message_id, metadata, source).request


REQUEST = update("01MESSAGE", "new")


def no_scrub(text):
    return text


def answer(status=200, body=b"{}", **headers):
    """Header names are given as `Retry_After`."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(
        status, CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), body
    )


def read(*args, scrub=no_scrub, reused=True, **headers):
    return UpdateMetadata(REQUEST).read(answer(*args, **headers), scrub=scrub, reused=reused)


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
GOOD_IDS = ["a", "0", "-", "_", "~", "...", ".a", "a..b", "~.-_", "01FC66621XXXXX119Z8PMV1QPA", "a" * 256]


@pytest.mark.parametrize("value", HOSTILE_IDS, ids=ascii)
def test_an_id_that_could_reach_elsewhere_is_refused(value):
    for check in (lambda: checked_id("message_id", value), lambda: update(value, "x")):
        with pytest.raises(
            InvalidArgumentError, match=r"^message_id must be 1 to 256 letters, digits, "
        ) as caught:
            check()
        assert len(str(caught.value)) < 800
        assert str(caught.value).isascii()
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", NO_TEXT, ids=repr)
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
        assert (url.host, url.raw_query_string, url.raw_fragment) == ("eu.conversation.api.sinch.com", "", "")


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
    ids=ascii,
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


@pytest.mark.parametrize("metadata", NO_TEXT, ids=repr)
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


# The request as bytes


def test_a_request_goes_over_the_wire_as_rfc_9112_writes_it():
    request = update("01", "é", "DISPATCH_SOURCE")
    assert serialized(request, request_head(request, "Bearer token", "agent/1 (x)")) == (
        b"PATCH /v1/projects/project-1/messages/01?messages_source=DISPATCH_SOURCE HTTP/1.1\r\n"
        b"Host: eu.conversation.api.sinch.com\r\n"
        b"Authorization: Bearer token\r\n"
        b"Content-Type: application/json\r\n"
        b"Accept: application/json\r\n"
        b"Accept-Encoding: identity\r\n"
        b"User-Agent: agent/1 (x)\r\n"
        b"Content-Length: 18\r\n"
        b"\r\n"
        b'{"metadata": "\xc3\xa9"}'
    )


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://api.example", b"api.example"),
        ("https://api.example:8443", b"api.example:8443"),
        ("http://127.0.0.1:8080", b"127.0.0.1:8080"),
        ("https://[2001:db8::1]", b"[2001:db8::1]"),
        ("http://[::1]:8080", b"[::1]:8080"),
        ("https://xn--bcher-kva.example", b"xn--bcher-kva.example"),
    ],
)
def test_the_host_field_is_the_origins_host_and_the_port_that_is_not_the_schemes_own(origin, host):
    request = UpdateMetadata.of(checked_origin("conversation_origin", origin), PATH, "01", "x").request
    assert b"\r\nHost: " + host + b"\r\n" in serialized(request, request_head(request, "Bearer t", "a"))


@given(
    st.text("aZ9._~-", min_size=3),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(SECRETS),
)
def test_nothing_that_was_checked_can_end_its_line(message_id, metadata, secret):
    request = update(message_id[:256], metadata[:1024])
    data = serialized(request, request_head(request, basic_authorization(Credentials("id", secret)), "agent"))
    head, _, body = data.partition(b"\r\n\r\n")
    assert len(head.split(b"\r\n")) == 8
    assert (head.count(b"\r"), head.count(b"\n"), head.count(b"\0")) == (7, 7, 0)
    assert body == request.body
    assert head.endswith(b"Content-Length: %d" % len(body))


def test_a_head_shows_no_authorization():
    assert repr(request_head(REQUEST, "Bearer canary", "agent")) == "Head()"


def test_the_header_fields_are_those_of_the_bytes():
    fields = request_headers(REQUEST, "Bearer token", "agent")
    data = serialized(REQUEST, request_head(REQUEST, "Bearer token", "agent"))
    for name, value in fields.items():
        assert f"\r\n{name}: {value}\r\n".encode() in data


# Query, origins, regions


@pytest.mark.parametrize("source", [*MessagesSource, "CONVERSATION_SOURCE", "DISPATCH_SOURCE"])
def test_a_messages_source_is_a_query_parameter(source):
    url = update("01", "x", source).url
    assert str(url) == f"{ORIGIN}{PATH}01?messages_source={str(source)}"  # noqa: RUF010  # what an enum member's str is, is the point


def test_no_messages_source_is_no_query():
    assert update("01", "x", None).url.raw_query_string == ""


@pytest.mark.parametrize(
    "source", ["", "dispatch_source", "DISPATCH", "DISPATCH_SOURCE&a=b", b"DISPATCH_SOURCE", 0, True, [], {}]
)
def test_an_unknown_messages_source_is_refused(source):
    with pytest.raises(
        InvalidArgumentError, match=r"^messages_source must be one of CONVERSATION_SOURCE, DISPATCH_SOURCE$"
    ) as caught:
        update("01", "x", source)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("region", [*Region, "us", "eu", "br"])
def test_a_region_has_its_origin(region):
    assert regional_origin(region) == f"https://{Region(region).value}.conversation.api.sinch.com"


@pytest.mark.parametrize("region", ["", "US", "au", "us.evil.example/", "us ", None, 1, True, b"us", [], {}])
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
    ids=ascii,
)
def test_what_has_no_host_that_can_be_looked_up_is_no_origin(value):
    with pytest.raises(
        InvalidArgumentError, match=r"^auth_origin must be an origin such as https://"
    ) as caught:
        checked_origin("auth_origin", value)
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("value", [*NO_TEXT, URL("https://api.example")], ids=repr)
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
        ("http://m%40e:c%3Aa%2Fn%20%C3%A9@proxy.example:3128", "http://proxy.example:3128", "m@e:c:a/n é"),
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
        assert header == ("Proxy-Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
    assert "canary" not in repr(proxy)
    assert base64.b64encode(b"me:canary").decode() not in repr(proxy)


def test_no_proxy_is_none():
    assert checked_proxy(None) is None


@pytest.mark.parametrize(
    "value", [*NO_HOSTS, "socks5://me:canary@proxy.example", URL(), URL("/proxy")], ids=str
)
def test_what_is_no_proxy_is_told_without_its_text(value):
    assert checked_proxy(value) == "proxy must be a URL such as http://user:password@proxy.example:3128"


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
    ids=ascii,
)
def test_credentials_that_no_header_can_carry_are_told_without_their_text(name, value, problem):
    assert checked_credentials(**{"key_id": "id", "key_secret": "secret", name: value}) == f"{name} {problem}"


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


def spellings(secret):
    """How a server may say a secret that it was sent, or a gateway that it logged."""
    basic = base64.b64encode(f"my-id:{secret}".encode()).decode()
    return {
        "plain": secret,
        "basic": f"Basic {basic}",
        "basic without padding": basic.rstrip("="),
        "percent-quoted": quote(secret, safe=""),
        "percent-quoted as a path": quote(secret),
        "percent-quoted as a form": quote_plus(secret),
        "in JSON": json.dumps(secret)[1:-1],
        "in JSON as PHP writes it": json.dumps(secret)[1:-1].replace("/", "\\/"),
        "in HTML": html.escape(secret),
    }


@pytest.mark.parametrize("spelling", spellings(""))
@pytest.mark.parametrize("secret", SECRETS)
def test_every_usual_spelling_of_a_secret_is_cut_out(secret, spelling):
    text = spellings(secret)[spelling]
    scrubbed = Credentials("my-id", secret).scrub(f"before {text} between {text}, after")
    assert re.fullmatch(r"before (Basic )?\[redacted\]=* between (Basic )?\[redacted\]=*, after", scrubbed)


@pytest.mark.parametrize("spelling", spellings(""))
@pytest.mark.parametrize("secret", SECRETS)
def test_an_echoed_secret_is_in_no_part_of_an_error(secret, spelling):
    credentials = Credentials("my-id", secret)
    echo = spellings(secret)[spelling]
    shown = {secret, echo}
    said = {
        "error": {
            "message": echo,
            "status": echo,
            "details": [{"type_url": echo, "value": echo, echo: [echo]}],
        }
    }
    as_page, as_json = f"<p>{echo}</p>".encode(), json.dumps(said).encode()
    as_escapes = "".join(f"\\u{ord(character):04x}" for character in echo)
    for body in (
        as_page,
        as_json,
        f'{{"error": "{as_escapes}"}}'.encode(),
        json.dumps({"error": echo}).encode(),
    ):
        error = read(401, body, scrub=credentials.scrub, X_Request_Id=echo).error
        parts = [
            *(str(error), error.message, error.status or "", error.request_id, error.body),
            *(text for detail in error.details for text in (detail.type_url, detail.value)),
            *(
                text
                for detail in error.details
                for pair in detail.extra.items()
                for text in (pair[0], pair[1][0])
            ),
        ]
        for part in parts:
            assert not any(text in part for text in shown), part
        assert "[redacted]" in error.request_id
        assert "[redacted]" in error.body
        assert as_escapes not in error.body


@pytest.mark.parametrize("spelling", spellings(""))
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_that_the_token_endpoint_echoes_is_in_no_part_of_the_error(secret, spelling):
    echo = spellings(secret)[spelling]
    body = {"error": f"invalid_client {echo}", "error_description": f"no key {echo}"}
    failure = read_token_answer(answer(401, body), scrub=Credentials("my-id", secret).scrub)
    for part in (str(failure.error), failure.error.error, repr(failure)):
        assert echo not in part
        assert secret not in part


def test_checking_credentials_raises_nothing_whose_frames_could_hold_them():
    for pair in [("canary\n", "canary"), ("id", "canary\n"), (None, "canary")]:
        assert isinstance(checked_credentials(*pair), str)


# Answers


def test_a_message_is_read():
    message = read(200, {"id": "01MESSAGE", "metadata": "new"})
    assert message == ConversationMessage(id="01MESSAGE", metadata="new")


def test_a_message_without_an_id_is_accepted():
    assert read(200, {"metadata": "new"}) == ConversationMessage(metadata="new")
    assert read(200, {"id": "", "metadata": "new"}) == ConversationMessage(id="", metadata="new")


def test_an_id_has_no_case():
    assert read(200, {"id": "01message"}).id == "01message"


@pytest.mark.parametrize("other", ["02MESSAGE", " ", "01MESSAGE "])
def test_another_id_on_a_connection_that_was_used_before_is_a_crossed_answer(other):
    failure = read(200, {"id": other, "metadata": "canary"}, reused=True)
    assert type(failure.error) is TransportError
    assert str(failure.error) == "the answer is about another message than the one asked for"
    assert failure.error.sent == "maybe"
    assert (failure.retryable, failure.maybe_applied, failure.crossed, failure.stale_connection) == (
        True,
        True,
        True,
        False,
    )
    assert "canary" not in f"{failure!r} {failure.error}"


def test_another_id_on_a_fresh_connection_is_not_what_the_api_promises():
    failure = read(200, {"id": "02MESSAGE", "metadata": "canary"}, reused=False)
    assert type(failure.error) is ResponseFormatError
    assert failure.error.http_status == 200
    assert str(failure.error) == "the answer is about another message than the one asked for"
    assert (failure.retryable, failure.maybe_applied, failure.crossed) == (False, True, False)
    assert "canary" not in f"{failure!r} {failure.error}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the 200 answer is not a message: not readable as JSON @ $"),
        (b"<html>", "the 200 answer is not a message: not readable as JSON @ $"),
        (b"[]", "the 200 answer is not a message: expected an object @ $"),
        (
            b'{"channel_identity": {"channel": 7}}',
            "the 200 answer is not a message: expected a string @ $.channel_identity.channel",
        ),
    ],
)
def test_a_200_that_is_no_message_was_applied_and_says_where_it_is_wrong(body, text):
    failure = read(200, body)
    assert type(failure.error) is ResponseFormatError
    assert (str(failure.error), failure.error.http_status) == (text, 200)
    assert (failure.retryable, failure.maybe_applied, failure.crossed) == (False, True, False)


@pytest.mark.parametrize(
    "status", [100, 101, 201, 202, 204, 206, 299, 300, 301, 302, 303, 304, 307, 308, 399, 600, 999]
)
def test_what_is_neither_200_nor_an_error_is_not_what_the_api_promises(status):
    failure = read(status, {"id": "01MESSAGE"}, Location="http://evil.example/canary", Retry_After="1")
    assert type(failure.error) is ResponseFormatError
    assert failure.error.http_status == status
    assert str(failure.error) == f"the API answers 200 or an error, not {status}"
    assert (failure.retryable, failure.maybe_applied) == (False, status < 300)


CLASSES = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitedError,
}


@pytest.mark.parametrize("status", range(400, 600))
def test_an_error_is_tried_again_when_that_can_help(status):
    failure = read(status, {"error": {"code": 13, "message": "no", "status": "INTERNAL", "details": []}})
    assert type(failure.error) is CLASSES.get(status, ServerError if status >= 500 else ApiError)
    assert failure.error.http_status == status
    assert failure.retryable is (status in {408, 429, 500, 502, 503, 504})
    assert failure.maybe_applied is (status in {500, 502, 503, 504})
    assert not failure.stale_connection
    assert not failure.crossed


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_retry_after_is_told_to_the_caller_and_to_those_who_wait(status):
    failure = read(status, b"", Retry_After="7")
    assert failure.error.retry_after == failure.retry_after == 7.0
    without = read(status, b"")
    assert without.error.retry_after is without.retry_after is None


@pytest.mark.parametrize(
    ("headers", "request_id"),
    [
        ({}, None),
        ({"X_Request_Id": "r-1"}, "r-1"),
        ({"x_request_id": "r-1"}, "r-1"),
        ({"X_Request_Id": "", "CF_RAY": "ray"}, "ray"),
        ({"Traceparent": "00-1-2-00", "X_Correlation_Id": "c-1"}, "c-1"),
        ({"X_Request_Id": "r" * 5000}, "r" * 256),
    ],
)
def test_the_request_id_is_whatever_id_header_came(headers, request_id):
    assert read(500, b"", **headers).error.request_id == request_id


@given(
    st.integers(100, 999),
    st.binary(),
    st.dictionaries(
        st.sampled_from(["Retry-After", "Date", "X-Request-Id", "CF-RAY", "Content-Type"]),
        st.text(st.characters(exclude_categories=[]), max_size=40),
    ),
)
def test_whatever_arrives_is_a_message_or_a_failure_of_the_right_kind(status, body, headers):
    response = Response(status, CIMultiDict(headers), body)
    outcome = UpdateMetadata(REQUEST).read(response, scrub=no_scrub, reused=True)
    if isinstance(outcome, ConversationMessage):
        assert status == 200
        return
    assert isinstance(outcome, Failure)
    if 400 <= status <= 599:
        assert type(outcome.error) is CLASSES.get(status, ServerError if status >= 500 else ApiError)
        wait = outcome.error.retry_after
        assert wait is None or 0 <= wait < math.inf
        assert wait == outcome.retry_after
    else:
        assert type(outcome.error) in (ResponseFormatError, TransportError)


def test_an_answer_shows_neither_headers_nor_body():
    assert repr(answer(200, b"canary", Set_Cookie="canary")) == "Response(status=200)"


# Content-Encoding


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


MESSAGE = json.dumps({"id": REQUEST.message_id}).encode()
CODINGS = {
    "none": ({}, MESSAGE),
    "identity": ({"Content_Encoding": " Identity "}, MESSAGE),
    "gzip": ({"Content_Encoding": "GZIP"}, gzip.compress(MESSAGE)),
    "x-gzip": ({"Content_Encoding": "x-gzip"}, gzip.compress(MESSAGE)),
    "gzip and no more": ({"Content_Encoding": "identity, gzip"}, gzip.compress(MESSAGE)),
    "gzip and padding": ({"Content_Encoding": "gzip"}, gzip.compress(MESSAGE) + b"\x00" * 8),
    "deflate": ({"Content_Encoding": "deflate"}, zlib.compress(MESSAGE)),
    "deflate without zlib's frame": ({"Content_Encoding": "deflate"}, raw_deflate(MESSAGE)),
}
NO_CODINGS = {
    "brotli": ("br", MESSAGE, "none that was asked for"),
    "two codings": ("gzip, gzip", gzip.compress(gzip.compress(MESSAGE)), "none that was asked for"),
    "not compressed": ("gzip", MESSAGE, "not compressed as its Content-Encoding says"),
    "cut short": ("gzip", gzip.compress(MESSAGE)[:-9], "has no end"),
    "nothing": ("gzip", b"", "has no end"),
    "a byte too long": ("deflate", zlib.compress(b" " * (MAX_ANSWER + 1)), "longer than 1,048,576 bytes"),
}


@pytest.mark.parametrize("name", CODINGS)
def test_an_answer_is_read_whatever_coding_it_came_in(name):
    headers, body = CODINGS[name]
    assert read(200, body, **headers).id == REQUEST.message_id


@pytest.mark.parametrize("name", NO_CODINGS)
def test_an_answer_in_a_coding_that_cannot_be_undone_was_applied_and_no_repeat_helps(name):
    coding, body, problem = NO_CODINGS[name]
    outcome = read(200, body, Content_Encoding=coding)
    assert isinstance(outcome.error, ResponseFormatError)
    assert problem in str(outcome.error)
    assert (outcome.error.http_status, outcome.retryable, outcome.maybe_applied) == (200, False, True)


@pytest.mark.parametrize("name", NO_CODINGS)
def test_an_error_in_a_coding_that_cannot_be_undone_is_still_the_error(name):
    coding, body, _ = NO_CODINGS[name]
    outcome = read(503, body, Content_Encoding=coding)
    assert isinstance(outcome.error, ServerError)
    assert outcome.retryable


# Retry-After


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("value", ["0", "Sun, 01 Mar 2026 11:59:00 GMT"])
def test_to_come_back_at_once_is_to_come_back_when_one_thinks_best(status, value):
    outcome = read(status, Retry_After=value, Date=NOON_TEXT)
    assert outcome.error.retry_after == 0
    assert outcome.retry_after is None


NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NOON_TEXT = "Sun, 01 Mar 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("007", 7.0),
        (" 120 ", 120.0),
        ("1.5", 1.5),
        ("2.", 2.0),
        ("2147483648", 2.0**31),
        ("99999999999", 2.0**31),
        ("9" * 400, 2.0**31),
        ("9" * 8000, 2.0**31),
        ("0." + "3" * 5000, 1 / 3),
        # Garbage
        ("", None),
        ("-1", None),
        ("-0", None),
        ("+5", None),
        ("1e3", None),
        ("1,5", None),
        ("1 2", None),
        ("0x10", None),
        (".5", None),
        ("1_000", None),
        ("nan", None),
        ("inf", None),
        ("Infinity", None),
        ("soon", None),
        ("١٢", None),
        ("²", None),
        ("\ud800", None),
        ("\x00", None),
        ("5; comment", None),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_retry_after_in_seconds(value, seconds):
    found = retry_after({"Retry-After": value, "Date": NOON_TEXT})
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30),
        ("Sunday, 01-Mar-26 12:00:30 GMT", 30),
        ("Sun Mar  1 12:00:30 2026", 30),
        ("Sun, 01 Mar 2026 13:00:30 +0100", 30),
        ("Sun, 01 Mar 2026 12:00:30 -0000", 30),
        ("Sun, 01 Mar 2026 12:00:00 GMT", 0),
        ("Sun, 01 Mar 2026 11:59:00 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 2**31),
        ("Sun, 32 Mar 2026 12:00:30 GMT", None),
        ("Sun, 01 Mar 99999 12:00:30 GMT", None),
        ("Sun, 01 Mar 2026 12:00:30 +999999999999", None),
        ("Sun, 01 Mar " + "9" * 5000 + " 12:00:30 GMT", None),
        ("2026-03-01T12:00:30Z", None),
        ("Sun,", None),
        (",", None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_retry_after_as_a_date_is_held_against_the_answers_own_date(value, seconds):
    assert retry_after({"Retry-After": value, "Date": NOON_TEXT}) == seconds


@pytest.mark.parametrize("date", [None, "", "now", "0", "Sun, 32 Mar 2026 12:00:00 GMT"])
def test_a_date_with_nothing_to_hold_it_against_gives_none(date):
    headers = {"Retry-After": "Sun, 01 Mar 2026 12:00:30 GMT"} | ({} if date is None else {"Date": date})
    assert retry_after(headers) is None


def test_no_retry_after_is_none():
    assert retry_after({"Date": NOON_TEXT}) is None


@given(st.integers(-(10**6), 10**6), st.integers(-(10**9), 10**9))
def test_clocks_that_are_off_cancel_out(wait, off):
    date = NOON + timedelta(seconds=off)
    headers = {
        "Retry-After": format_datetime(date + timedelta(seconds=wait), usegmt=True),
        "Date": format_datetime(date, usegmt=True),
    }
    assert retry_after(headers) == max(0, wait)


DATES = st.builds(
    " ".join,
    st.lists(
        st.sampled_from(
            [
                "Sun,",
                "01",
                "Mar",
                "2026",
                "12:00:30",
                "GMT",
                "+0100",
                "99",
                "12.00.30",
                ":",
                "-",
                ",",
                "(",
                "٣",
            ]
        )
        | st.text(max_size=4),
        max_size=7,
    ),
)


@given(DATES | st.text(st.characters(exclude_categories=[])), DATES | st.just(NOON_TEXT))
def test_whatever_the_header_says_the_wait_is_finite_and_not_negative(value, date):
    wait = retry_after({"Retry-After": value, "Date": date})
    assert wait is None or 0 <= wait <= 2.0**31


# Tokens


def granted(body, status=200):
    return read_token_answer(answer(status, body), scrub=no_scrub)


def test_a_token_request_is_a_form_that_holds_no_secret():
    request = token_request("https://auth.example")
    assert (request.method, str(request.url)) == ("POST", "https://auth.example/oauth2/token")
    assert (request.body, request.content_type) == (
        b"grant_type=client_credentials",
        "application/x-www-form-urlencoded",
    )


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [
        ({"expires_in": 3599}, 3599.0),
        ({"expires_in": "3600"}, 3600.0),
        ({"expires_in": " 60 "}, 60.0),
        ({"expires_in": 59.5}, 59.5),
        ({"expires_in": "1e3"}, 1000.0),
        ({"expires_in": None}, 600.0),
        ({}, 600.0),
    ],
)
def test_a_token_is_granted_for_its_lifetime(expires_in, lifetime):
    grant = granted({"access_token": "canary", "token_type": "bearer", "scope": "", **expires_in})
    assert grant == TokenResponse("canary", lifetime)
    assert repr(grant) == f"TokenResponse(lifetime={lifetime!r})"


@pytest.mark.parametrize(
    "expires_in",
    [
        0,
        -1,
        0.0,
        -0.5,
        "0",
        "-5",
        "soon",
        "",
        "nan",
        "inf",
        True,
        False,
        [],
        {},
        10**400,
        "9" * 400,
        "1" * 5000,
        1e999,
        math.nan,
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_lifetime_that_is_none_is_refused(expires_in):
    failure = granted({"access_token": "canary", "expires_in": expires_in})
    assert type(failure.error) is TokenError
    assert str(failure.error) == (
        "the token endpoint's answer has an expires_in that is not a positive number of seconds"
    )
    assert (failure.error.http_status, failure.retryable) == (200, False)
    assert "canary" not in repr(failure)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "has no access_token"),
        (b"canary", "has no access_token"),
        (b"null", "has no access_token"),
        (b"[]", "has no access_token"),
        (b'"canary"', "has no access_token"),
        (b"[" * 100_000, "has no access_token"),
        ({}, "has no access_token"),
        ({"access_token": None}, "has no access_token"),
        ({"access_token": ""}, "has no access_token"),
        ({"access_token": ["canary"]}, "has no access_token"),
        ({"access_token": 5}, "has no access_token"),
        ({"access_token": "canary\r\nX-Evil: 1"}, "has an access_token that no header can carry"),
        ({"access_token": "canary\x00"}, "has an access_token that no header can carry"),
        ({"access_token": "canaryé"}, "has an access_token that no header can carry"),
        ({"access_token": "canary\ud800"}, "has an access_token that no header can carry"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_an_answer_without_a_usable_token_is_told_without_its_text(body, problem):
    failure = granted(body)
    assert type(failure.error) is TokenError
    assert str(failure.error) == f"the token endpoint's answer {problem}"
    assert (failure.error.http_status, failure.error.error, failure.retryable) == (200, None, False)
    assert "canary" not in repr(failure)


@pytest.mark.parametrize(
    ("status", "body", "text", "code"),
    [
        (
            401,
            {"error": "invalid_client", "error_description": "no such key"},
            "the token endpoint answered 401 invalid_client: no such key",
            "invalid_client",
        ),
        (
            400,
            {"error": "invalid_request"},
            "the token endpoint answered 400 invalid_request",
            "invalid_request",
        ),
        (
            400,
            {"error": "x" * 1000, "error_description": "y" * 1000},
            f"the token endpoint answered 400 {'x' * 64}: {'y' * 256}",
            "x" * 64,
        ),
        (400, {"error": "e", "error_description": ["no text"]}, "the token endpoint answered 400 e", "e"),
        (401, {"error": {"code": 401}}, "the token endpoint answered 401", None),
        (401, {"error_description": "alone"}, "the token endpoint answered 401", None),
        (401, b"invalid_client", "the token endpoint answered 401", None),
        (403, b"<html>", "the token endpoint answered 403", None),
        (502, b"", "the token endpoint answered 502", None),
        (503, b"[" * 100_000, "the token endpoint answered 503", None),
        (201, {"access_token": "canary"}, "the token endpoint answered 201", None),
        (302, {"access_token": "canary"}, "the token endpoint answered 302", None),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_an_error_of_the_token_endpoint_has_its_oauth_code(status, body, text, code):
    failure = granted(body, status)
    assert type(failure.error) is TokenError
    assert (str(failure.error), failure.error.error, failure.error.http_status) == (text, code, status)


@pytest.mark.parametrize("status", [201, 301, 307, *range(400, 600)])
def test_the_token_endpoint_is_asked_again_after_429_and_5xx(status):
    failure = read_token_answer(answer(status, b"", Retry_After="3"), scrub=no_scrub)
    assert failure.retryable is (status in {408, 429} or status >= 500)
    assert failure.retry_after == 3.0


@given(
    st.integers(100, 999),
    st.binary()
    | st.dictionaries(
        st.sampled_from(["access_token", "expires_in", "error"]),
        st.none() | st.text() | st.integers() | st.floats(),
    ),
)
def test_whatever_the_token_endpoint_says_is_a_token_or_a_token_error(status, body):
    outcome = granted(body, status)
    if isinstance(outcome, TokenResponse):
        assert status == 200
        assert outcome.access_token.isprintable()
        assert 0 < outcome.lifetime < math.inf
    else:
        assert type(outcome.error) is TokenError
