"""Judge behind an endpoint of OpenAI's chat protocol: a hosted model or any local server.

The key is read from OPENAI_API_KEY when needed. It is sent only to the host of `judge.url`, never to the target of a redirect, and is
removed from everything that is stored or printed of an answer.
"""

import http.client
import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from qgoft.config.settings import JudgeSettings
from qgoft.errors import QgoftError

KEY, HOSTED = "OPENAI_API_KEY", "api.openai.com"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
# Largest answer in bytes; a judgment has a few thousand.
MOST_BYTES = 2**20
# Local servers accept any key; one of a few letters is not a secret and occurs in every text.
SHORTEST_KEY = 8
# Characters of a server's message that an error quotes.
QUOTED = 200
# Rough values for the estimate: English text has about four characters per token, and a judgment is a paragraph.
CHARACTERS_PER_TOKEN, TOKENS_OF_JUDGMENT = 4, 300
# Reasoning models: they use another name for the token limit and accept no temperature.
REASONING = re.compile(r"(gpt-5|o\d)(?!\d)")


@dataclass(frozen=True)
class Messages:
    """Messages of one request."""

    system: str
    user: str


class NoAnswer(RuntimeError):
    """The endpoint gave no answer; the message gives the reason, without the key."""


class Refused(NoAnswer):
    """The endpoint rejects the request (status 400, 413, 422 ...); a retry would not help."""


class NoEndpoint(NoAnswer):
    """The endpoint failed in all attempts, for reasons unrelated to the question."""


def estimate(asked: list[Messages], settings: JudgeSettings) -> str:
    """Estimate the tokens and cost of all requests, before anything is sent."""
    count = len(asked)
    sent = sum(len(one.system) + len(one.user) for one in asked) // CHARACTERS_PER_TOKEN
    back = count * TOKENS_OF_JUDGMENT
    price = "price not stated (judge.price_input, judge.price_output)"
    if settings.price_input is not None and settings.price_output is not None:
        price = f"about ${(sent * settings.price_input + back * settings.price_output) / 1e6:.2f}"
    return f"judge {settings.model}: {count} ratings to ask for, about {sent:,} tokens sent and {back:,} received, {price}"


def read_key(settings: JudgeSettings) -> str | None:
    """Return the key, or None if a local server needs none.

    Raises:
        QgoftError: OpenAI's own endpoint is used without a key, or the variable does not hold a key.
    """
    key = os.environ.get(KEY, "").strip()
    if not key and urllib.parse.urlsplit(settings.url).hostname == HOSTED:
        raise QgoftError(f"the judge at {settings.url} needs a key: set {KEY}, or judge.url to a server of your own")
    if not (key.isascii() and key.isprintable()):
        raise QgoftError(f"{KEY} contains characters that a key cannot have; set it to the key only")
    return key or None


def request_body(messages: Messages, settings: JudgeSettings) -> dict[str, Any]:
    """Return the body of a request, without fields that reasoning models reject unless the settings set them."""
    is_reasoning = REASONING.match(settings.model.rpartition("/")[2]) is not None
    field = settings.token_field if settings.token_field != "auto" else "max_completion_tokens" if is_reasoning else "max_tokens"
    chat = [{"role": "system", "content": messages.system}, {"role": "user", "content": messages.user}]
    if not settings.system_role:
        chat = [{"role": "user", "content": f"{messages.system}\n\n{messages.user}"}]
    sampling = {} if settings.temperature is None or is_reasoning else {"temperature": settings.temperature}
    return {"model": settings.model, "messages": chat, **sampling, field: settings.max_tokens}


def ask(messages: Messages, settings: JudgeSettings, sleep: Callable[[float], None] = time.sleep) -> str:
    """Return the judge's text. Retries a busy or failing endpoint up to `retries` times with exponential backoff.

    Raises:
        Refused: the endpoint rejects the request, with its reason.
        NoAnswer: the answer does not follow the protocol, or holds no text.
        NoEndpoint: it was unreachable or busy in every attempt.
        QgoftError: it rejects the key or the model, or redirects, which would happen for every question.
    """
    headers = {"Content-Type": "application/json"}
    key = read_key(settings)
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    url = f"{settings.url.rstrip('/')}/chat/completions"
    try:
        request = urllib.request.Request(url, json.dumps(request_body(messages, settings)).encode(), headers)
    except ValueError as error:
        raise QgoftError(f"judge.url={settings.url} is not an address ({error}); expected one such as http://localhost:8000/v1") from None
    failure, pause = NoAnswer(""), FIRST_PAUSE
    for attempt in range(settings.retries + 1):
        if attempt:
            sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        try:
            return _without_key(_text_of(_send(request, settings.timeout)), key)
        except _Status as error:
            reason, asked = f"status {error.code}{_message_of(error.body, key)}", error.pause
            if 300 <= error.code < 400:
                raise QgoftError(f"the judge at {settings.url} redirects ({reason}); set judge.url to the address that answers") from None
            if error.code in (401, 403, 404):
                raise QgoftError(
                    f"the judge at {settings.url} refuses ({reason}); check {KEY}, judge.model={settings.model} and judge.url"
                ) from None
            if error.code < 500 and error.code not in (408, 409, 429):
                raise Refused(reason) from None
            failure, pause = NoEndpoint(reason), max(pause, asked)
        except http.client.HTTPException:
            failure = NoAnswer("the answer came short")
        except OSError as error:
            is_late = isinstance(getattr(error, "reason", error), TimeoutError)
            failure = NoEndpoint(f"{'timed out' if is_late else 'cannot be reached'}{_proxy_of(url)}")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            failure = NoAnswer("the answer is not that of a chat endpoint")
        except NoAnswer as error:
            failure = error
    raise failure


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treat a redirect as an error: the key must not be sent to another host."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        return None


class _Status(Exception):
    """Answer with an error status: its code, its body, and the seconds that a busy endpoint asks to wait."""

    def __init__(self, code: int, body: bytes, pause: float):
        super().__init__(f"status {code}")
        self.code, self.body, self.pause = code, body, pause


def _send(request: urllib.request.Request, timeout: float) -> bytes:
    """Return the body of the answer: at most MOST_BYTES, within `timeout` seconds in total.

    Raises:
        OSError, HTTPException: no answer.
        _Status: an error status.
        NoAnswer: the answer is too long.
    """
    with _deadline(timeout) as (sockets, is_over):
        opener = urllib.request.build_opener(_NoRedirect, *(handler(sockets, is_over) for handler in (_Http, _Https)))
        try:
            with opener.open(request, timeout=timeout) as response:
                body: bytes = response.read(MOST_BYTES + 1)
                if response.length and len(body) <= MOST_BYTES:
                    raise http.client.IncompleteRead(body)
        except urllib.error.HTTPError as error:
            body = b""
            with error, suppress(OSError, http.client.HTTPException):
                body = error.read(MOST_BYTES)
            raise _Status(error.code, body, _asked_pause(error)) from None
        except (OSError, http.client.HTTPException, ValueError):
            if is_over():
                raise TimeoutError from None
            raise
        if is_over():
            raise TimeoutError
    if len(body) > MOST_BYTES:
        raise NoAnswer(f"the answer has more than {MOST_BYTES:,} bytes")
    return body


@contextmanager
def _deadline(seconds: float) -> Iterator[tuple[list[socket.socket], Callable[[], bool]]]:
    """Shut down the sockets of the block after a deadline. A socket's own timeout restarts with every byte."""
    sockets: list[socket.socket] = []
    over = threading.Event()

    def shut() -> None:
        over.set()
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already

    timer = threading.Timer(seconds, shut)
    timer.daemon = True
    timer.start()
    try:
        yield sockets, over.is_set
    finally:
        timer.cancel()


class _Http(urllib.request.HTTPHandler):
    """Opener whose sockets are in the list."""

    connection: type[http.client.HTTPConnection] = http.client.HTTPConnection

    def __init__(self, sockets: list[socket.socket], is_over: Callable[[], bool]):
        super().__init__()
        self.sockets, self.is_over = sockets, is_over

    def _connect(self, host: str, **keywords: Any) -> http.client.HTTPConnection:
        made, connect = self.connection(host, **keywords), self.connection.connect

        def listed() -> None:
            connect(made)
            self.sockets.append(made.sock)
            if self.is_over():  # the deadline passed while it connected
                made.close()
                raise TimeoutError

        made.connect = listed  # type: ignore[method-assign]
        return made

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connect, request)


class _Https(_Http, urllib.request.HTTPSHandler):
    connection = http.client.HTTPSConnection

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connect, request)


def _text_of(body: bytes) -> str:
    """Return the text of an answer, whose content is a string or a list of parts.

    Raises:
        NoAnswer: it holds no text, with its finish reason.
    """
    choice = json.loads(body)["choices"][0]
    content = choice["message"].get("content")
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else part.get("text") for part in content]
        content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str) or not content.strip():
        raise NoAnswer(f"the answer has no text (finish_reason {str(choice.get('finish_reason'))[:40]})")
    return content


def _message_of(body: bytes, key: str | None) -> str:
    """Return the server's error message in one line without control characters."""
    try:
        told = json.loads(body)
        told = told.get("error", told)
        text = told if isinstance(told, str) else str(told.get("message") or told.get("detail") or "")
    except (ValueError, AttributeError, RecursionError):
        text = body.decode("utf-8", "replace")
    text = "".join(letter if letter.isprintable() else " " for letter in _without_key(text, key))
    text = " ".join(text.split())[:QUOTED]
    return f": {text}" if text else ""


def _without_key(text: str, key: str | None) -> str:
    """Remove the key from a text: a server may echo the request."""
    return text if key is None or len(key) < SHORTEST_KEY else text.replace(key, f"[{KEY}]")


def _proxy_of(url: str) -> str:
    """Return ` through the proxy HOST` if the environment names a proxy for this address."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    host = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return f" through the proxy {host.hostname}{f':{host.port}' if host.port else ''} of the environment ({parts.scheme}_proxy)"


def _asked_pause(error: urllib.error.HTTPError) -> float:
    """Return the seconds that a busy endpoint asks to wait, limited to a reasonable range."""
    try:
        return min(float(error.headers.get("Retry-After", 0)), LONGEST_PAUSE)
    except ValueError:
        return 0.0
