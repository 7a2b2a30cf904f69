"""A judge behind an endpoint that speaks OpenAI's chat protocol: a hosted model, or any local server.

The key is read from OPENAI_API_KEY when it is needed, and stands in no file, log or message.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from qgoft.errors import QgoftError
from qgoft.settings import JudgeSettings

KEY, HOSTED = "OPENAI_API_KEY", "api.openai.com"
MAX_TOKENS = 2048
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
# Rough, for the estimate alone: English text has about four characters a token, and a judgment is a paragraph.
CHARACTERS_PER_TOKEN, TOKENS_OF_JUDGMENT = 4, 300


@dataclass(frozen=True)
class Messages:
    """What is sent for one rating."""

    system: str
    user: str


class NoAnswer(RuntimeError):
    """The endpoint gave none; the message says why, without the key."""


class NoEndpoint(NoAnswer):
    """It gave none however often it was asked, for reasons that have nothing to do with the question."""


def estimate(asked: list[Messages], settings: JudgeSettings) -> str:
    """What asking will take, before anything is sent."""
    count = len(asked)
    sent = sum(len(one.system) + len(one.user) for one in asked) // CHARACTERS_PER_TOKEN
    back = count * TOKENS_OF_JUDGMENT
    price = "price not stated (judge.price_input, judge.price_output)"
    if settings.price_input is not None and settings.price_output is not None:
        price = f"about ${(sent * settings.price_input + back * settings.price_output) / 1e6:.2f}"
    return f"judge {settings.model}: {count} ratings to ask for, about {sent:,} tokens sent and {back:,} received, {price}"


def read_key(settings: JudgeSettings) -> str | None:
    """The key, where there is one: a server of one's own may need none.

    Raises:
        QgoftError: OpenAI's own endpoint is asked without a key, or what the variable holds is none.
    """
    key = os.environ.get(KEY, "").strip()
    if not key and urllib.parse.urlsplit(settings.url).hostname == HOSTED:
        raise QgoftError(f"the judge at {settings.url} needs a key: set {KEY}, or judge.url to a server of your own")
    if not (key.isascii() and key.isprintable()):
        raise QgoftError(f"{KEY} holds characters that no key has; set it to the key alone")
    return key or None


def ask(messages: Messages, settings: JudgeSettings, sleep: Callable[[float], None] = time.sleep) -> str:
    """The judge's text. A busy or failing endpoint is asked again, up to `retries` times, after longer and longer pauses.

    Raises:
        NoAnswer: what it answered is not the protocol, or it will not answer this question.
        NoEndpoint: it cannot be reached or is busy, every time.
        QgoftError: it refuses the key or the model: asking for another question would not help.
    """
    body = {
        "model": settings.model,
        "messages": [{"role": "system", "content": messages.system}, {"role": "user", "content": messages.user}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    headers = {"Content-Type": "application/json"}
    if key := read_key(settings):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{settings.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
    failure, pause = NoAnswer(""), FIRST_PAUSE
    for attempt in range(settings.retries + 1):
        if attempt:
            sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        try:
            with urllib.request.urlopen(request, timeout=settings.timeout) as response:
                content = json.loads(response.read())["choices"][0]["message"]["content"]
            if not isinstance(content, str):
                raise NoAnswer("the answer holds no text")
            return content
        except urllib.error.HTTPError as error:
            reason, asked = f"status {error.code}", _asked_pause(error)
            failure = NoEndpoint(reason)
            error.close()
            if error.code in (401, 403, 404):
                raise QgoftError(
                    f"the judge at {settings.url} refuses ({reason}); check {KEY}, judge.model={settings.model} and judge.url"
                ) from None
            if error.code < 500 and error.code not in (408, 409, 429):
                raise NoAnswer(reason) from None
            pause = max(pause, asked)
        except http.client.HTTPException:
            failure = NoAnswer("the answer came short")
        except OSError as error:
            is_late = isinstance(getattr(error, "reason", error), TimeoutError)
            failure = NoEndpoint("timed out" if is_late else "cannot be reached")
        except (ValueError, KeyError, IndexError, TypeError):
            failure = NoAnswer("the answer is not that of a chat endpoint")
    raise failure


def _asked_pause(error: urllib.error.HTTPError) -> float:
    """Seconds that a busy endpoint asks to wait, within reason."""
    try:
        return min(float(error.headers.get("Retry-After", 0)), LONGEST_PAUSE)
    except ValueError:
        return 0.0
