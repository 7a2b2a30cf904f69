"""The judge behind an endpoint: a real server on the loopback interface that is slow, busy or malformed."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qgoft.config.settings import JudgeSettings
from qgoft.errors import QgoftError
from qgoft.judge import openai
from qgoft.judge.vicuna import JudgmentFile, Question, judge_answers, messages_for, read_prompts, unanswered, unrated

PROMPTS = {
    "single-v1": {"system": "Judge.", "user": "Q: {question} A: {answer}"},
    "single-math-v1": {"system": "Judge.", "user": "Q: {question} R: {ref_answer_1} A: {answer}"},
}


class Endpoint:
    """Respond by a script: a status, a text, or "hang"."""

    def __init__(self):
        self.script, self.seen = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((self.path, dict(self.headers), body))
                step = outer.script.pop(0) if outer.script else "Rating: [[5]]"
                if callable(step):
                    step(self)
                    return
                if step == "hang":
                    outer.released.wait(5)
                    return
                if isinstance(step, int):
                    self.send_response(step)
                    self.end_headers()
                    return
                content = step if isinstance(step, dict) else {"choices": [{"message": {"content": step}}]}
                data = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data) + 9 * (step == "short")))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.released = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def settings(self, **changes):
        url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return JudgeSettings(**{"kind": "openai", "model": "stand-in-1", "url": url, "timeout": 0.5, "retries": 2, **changes})


@pytest.fixture
def endpoint():
    made = Endpoint()
    yield made
    made.released.set()
    made.server.shutdown()
    made.server.server_close()


def ask(endpoint, pauses=None, **changes):
    return openai.ask(openai.Messages("s", "u"), endpoint.settings(**changes), sleep=(pauses if pauses is not None else []).append)


def test_openai_request_and_response(endpoint, monkeypatch):
    monkeypatch.setenv(openai.KEY, "secret-key")
    assert ask(endpoint) == "Rating: [[5]]"
    path, headers, body = endpoint.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-key"
    assert (body["model"], body["temperature"]) == ("stand-in-1", 0)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_openai_retries_busy_endpoints(endpoint):
    pauses = []
    endpoint.script = [429, 500, "[[8]]"]
    assert ask(endpoint, pauses) == "[[8]]"
    assert pauses == [1.0, 2.0]


def test_openai_retries_truncated_responses(endpoint):
    endpoint.script = ["short", "[[8]]"]
    assert ask(endpoint) == "[[8]]"


def test_openai_hanging_endpoint_times_out(endpoint):
    endpoint.script = ["hang", "[[8]]"]
    assert ask(endpoint) == "[[8]]"


@pytest.mark.parametrize(
    ("script", "reason"), [([503, 503, 503], "status 503"), ([400], "status 400"), ([{"no": "choices"}] * 3, "not that of a chat endpoint")]
)
def test_openai_no_response(endpoint, script, reason):
    endpoint.script = script
    with pytest.raises(openai.NoAnswer, match=reason):
        ask(endpoint)


def test_openai_refused_key_is_not_printed(endpoint, monkeypatch):
    monkeypatch.setenv(openai.KEY, "secret-key")
    endpoint.script = [401]
    with pytest.raises(QgoftError, match="refuses") as caught:
        ask(endpoint)
    assert "secret-key" not in str(caught.value)


def status(code, body=b"", **headers):
    def send(handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def send_forever(handler, piece, pause=0.0):
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause)


def drip(handler):
    """Send a byte before every socket timeout, endlessly."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    send_forever(handler, b"x", 0.05)


def failing_drip(handler):
    """Send an error status, and its reason one byte at a time."""
    handler.send_response(400)
    handler.end_headers()
    send_forever(handler, b"x", 0.05)


def stream(handler):
    """Send more than fits in memory."""
    handler.send_response(200)
    handler.end_headers()
    send_forever(handler, b" " * 2**16)


def test_openai_redirect_is_refused(endpoint, monkeypatch):
    monkeypatch.setenv(openai.KEY, "secret-key")
    other = Endpoint()
    try:
        for code in (301, 302, 303, 307, 308):
            endpoint.script = [status(code, Location=f"http://127.0.0.1:{other.server.server_port}/v1/chat/completions")]
            with pytest.raises(QgoftError, match=rf"redirects \(status {code}\); set judge\.url to the address that answers"):
                ask(endpoint)
        assert not other.seen
    finally:
        other.server.shutdown()
        other.server.server_close()


@pytest.mark.parametrize(
    ("step", "reason"), [(drip, "timed out"), (failing_drip, "status 400"), (stream, "the answer has more than 1,048,576 bytes")]
)
def test_openai_endless_response_is_bounded(endpoint, step, reason):
    endpoint.script, began = [step] * 2, time.monotonic()
    with pytest.raises(openai.NoAnswer, match=reason):
        ask(endpoint, retries=1)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error": {"message": "Unsupported parameter: max_tokens"}}', "status 400: Unsupported parameter: max_tokens"),
        (b'{"error": "context length is 4096"}', "status 400: context length is 4096"),
        (b'{"detail": "no system role"}', "status 400: no system role"),
        (b"<h1>Bad\x1b[31m</h1>", r"status 400: <h1>Bad \[31m</h1>"),
        (b"[" * 100_000, "status 400: "),
        (b"your key secret-key is old", r"status 400: your key \[OPENAI_API_KEY\] is old"),
    ],
)
def test_openai_refusal_keeps_the_reason(endpoint, monkeypatch, body, reason):
    monkeypatch.setenv(openai.KEY, "secret-key")
    endpoint.script = [status(400, body)]
    with pytest.raises(openai.Refused, match=reason) as caught:
        ask(endpoint)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "text", "text": "Rating: "}, {"type": "text", "text": "[[8]]"}]}, "Rating: [[8]]"),
        ({"content": "the key was secret-key, [[3]]"}, "the key was [OPENAI_API_KEY], [[3]]"),
    ],
)
def test_openai_text_of_a_response(endpoint, monkeypatch, message, text):
    monkeypatch.setenv(openai.KEY, "secret-key")
    endpoint.script = [{"choices": [{"message": message}]}]
    assert ask(endpoint) == text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": [{"message": {"content": None}, "finish_reason": "length"}]}, r"no text \(finish_reason length\)"),
        ({"choices": [{"message": {"content": []}}]}, "no text"),
        ({"choices": [{"message": 3}]}, "not that of a chat endpoint"),
        (status(200, b"[" * 100_000), "not that of a chat endpoint"),
    ],
)
def test_openai_malformed_response(endpoint, answer, reason):
    endpoint.script = [answer] * 3
    with pytest.raises(openai.NoAnswer, match=reason):
        ask(endpoint)


@pytest.mark.parametrize(
    ("changes", "field", "temperature", "roles"),
    [
        ({}, "max_tokens", 0.0, ["system", "user"]),
        ({"model": "gpt-5-mini"}, "max_completion_tokens", None, ["system", "user"]),
        ({"model": "openai/o3"}, "max_completion_tokens", None, ["system", "user"]),
        ({"model": "gpt-50"}, "max_tokens", 0.0, ["system", "user"]),
        ({"token_field": "max_completion_tokens", "temperature": None}, "max_completion_tokens", None, ["system", "user"]),
        ({"system_role": False, "max_tokens": 9}, "max_tokens", 0.0, ["user"]),
    ],
)
def test_openai_server_options(endpoint, changes, field, temperature, roles):
    ask(endpoint, **changes)
    body = endpoint.seen[0][2]
    assert body[field] == changes.get("max_tokens", 2048)
    assert len([name for name in body if "tokens" in name]) == 1
    assert body.get("temperature") == temperature
    assert [message["role"] for message in body["messages"]] == roles
    assert "s" in body["messages"][0]["content"]


def test_openai_proxy_is_named(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://user:word@127.0.0.1:9")
    settings = JudgeSettings(kind="openai", model="m", url="http://judge.invalid/v1", retries=0)
    with pytest.raises(openai.NoEndpoint, match=r"cannot be reached through the proxy 127\.0\.0\.1:9 of the environment \(http_proxy\)"):
        openai.ask(openai.Messages("s", "u"), settings)


def test_openai_three_equal_refusals(endpoint, tmp_path):
    """Before eighty questions are paid for."""
    asked, file = questions(8), JudgmentFile(tmp_path / "judgments.jsonl", {"answers": "x"})
    endpoint.script = [status(400, b'{"error": "no system role"}')] * 8
    with pytest.raises(QgoftError, match=r"refused 3 questions in a row \(status 400: no system role\); .* judge\.system_role"):
        judge_answers(asked, ["a"] * 8, endpoint.settings(), file, PROMPTS, print)
    assert len(endpoint.seen) == 3


@pytest.mark.parametrize("failure", [400, 503])
def test_judge_continues_after_one_failing_question(endpoint, tmp_path, failure):
    """One question that always fails, with three ratings each: the other questions are rated."""
    asked, file = questions(3), JudgmentFile(tmp_path / "judgments.jsonl", {"answers": "x"})
    endpoint.script = ["[[7]]", failure, "[[7]]"] * 3
    judgments = judge_answers(asked, ["a"] * 3, endpoint.settings(num_ratings=3, retries=0), file, PROMPTS, print)
    assert unanswered(asked, judgments) == [2]
    endpoint.script = [failure] * 3
    assert unanswered(asked, judge_answers(asked, ["a"] * 3, endpoint.settings(num_ratings=3, retries=0), file, PROMPTS, print)) == [2]


def test_judge_keeps_unrated_answers(endpoint, tmp_path):
    asked, file = questions(3), JudgmentFile(tmp_path / "judgments.jsonl", {"answers": "x"})
    endpoint.script = ["[[7]]", "I would not say", 400]
    judgments = judge_answers(asked, ["a"] * 3, endpoint.settings(), file, PROMPTS, print)
    assert unrated(asked, judgments) == [2, 3]
    assert unanswered(asked, judgments) == [3]


@pytest.mark.parametrize(("value", "sent"), [("secret-key\r\n", "Bearer secret-key"), ("", None)])
def test_openai_key_is_stripped(endpoint, value, sent, monkeypatch):
    monkeypatch.setenv(openai.KEY, value)
    ask(endpoint)
    assert endpoint.seen[0][1].get("Authorization") == sent


@pytest.mark.parametrize(
    ("value", "message"), [("", "needs a key: set OPENAI_API_KEY"), ("sk-\nsecret", "contains characters that a key cannot have")]
)
def test_openai_invalid_key_before_requests(value, message, monkeypatch):
    monkeypatch.setenv(openai.KEY, value)
    with pytest.raises(QgoftError, match=message) as caught:
        openai.read_key(JudgeSettings(kind="openai", model="m"))
    assert "secret" not in str(caught.value)


def questions(count):
    return [Question(i + 1, "math" if i == 0 else "generic", f"question {i}", "", ("reference",) if i == 0 else ()) for i in range(count)]


def test_judge_repeats_only_failed_judgments(endpoint, tmp_path):
    said, asked = [], questions(5)
    endpoint.script = ["[[7]]", "no number", "[[11]]", "[[3]] [[4]]", 400]
    file = JudgmentFile(tmp_path / "judgments.jsonl", {"answers": "x"})
    judgments = judge_answers(asked, ["a"] * 5, endpoint.settings(), file, PROMPTS, said.append)
    assert [j["rating"] for j in judgments] == [7, None, None, None, None]
    assert [j["error"] for j in judgments[1:]] == ["no rating", "rating outside 1 to 10", "several ratings", "status 400"]
    assert unrated(asked, judgments) == [2, 3, 4, 5]
    assert "5 ratings to ask for" in said[0]
    assert "price not stated" in said[0]
    assert said[1] == "judge stand-in-1: unrated: 1 x no rating, 1 x rating outside 1 to 10, 1 x several ratings, 1 x status 400"
    endpoint.seen.clear()
    again = judge_answers(
        asked, ["a"] * 5, endpoint.settings(), JudgmentFile(tmp_path / "judgments.jsonl", {"answers": "x"}), PROMPTS, said.append
    )
    assert [j["rating"] for j in sorted(again, key=lambda j: j["question_id"])] == [7, 5, 5, 5, 5]
    assert len(endpoint.seen) == 4
    assert endpoint.seen[0][2]["messages"][1]["content"] == "Q: question 1 A: a"
    assert file.count() == (9, 4), "what was asked again had failed all the same"


def test_judge_resumes_after_dead_endpoint(endpoint, tmp_path):
    asked, file = questions(8), JudgmentFile(tmp_path / "judgments.jsonl", {"answers": "x"})
    endpoint.script = ["[[7]]", 503, 503, "no number", 429, 500, 503]
    with pytest.raises(QgoftError, match=r"no answer to 3 questions in a row \(status 503\); what it has rated is kept"):
        judge_answers(asked, ["a"] * 8, endpoint.settings(retries=0), file, PROMPTS, print)
    assert len(endpoint.seen) == 7
    judgments = judge_answers(asked, ["a"] * 8, endpoint.settings(retries=0), file, PROMPTS, print)
    assert len(endpoint.seen) == 7 + 7
    assert unrated(asked, judgments) == []


def test_judge_several_ratings_and_new_answers(endpoint, tmp_path):
    endpoint.script = ["[[2]]", "[[8]]", "[[9]]"]
    path, asked = tmp_path / "judgments.jsonl", questions(1)
    judge_answers(asked, ["a"], endpoint.settings(num_ratings=3), JudgmentFile(path, {"answers": "x"}), PROMPTS, print)
    assert len(endpoint.seen) == 3
    assert endpoint.seen[0][2]["messages"][1]["content"] == "Q: question 0 R: reference A: a"
    # Other answers: earlier judgments are not used.
    assert JudgmentFile(path, {"answers": "y"}).read() == []


def test_judge_ignores_a_corrupt_last_line(tmp_path):
    path = tmp_path / "judgments.jsonl"
    file = JudgmentFile(path, {"answers": "x"})
    file.append({"question_id": 1, "repeat": 0, "rating": 4.0, "error": None, "text": ""})
    with open(path, "a") as raw:
        raw.write('{"question_id": 2, "rep')
    again = JudgmentFile(path, {"answers": "x"})
    again.append({"question_id": 3, "repeat": 0, "rating": 5.0, "error": None, "text": ""})
    assert [j["question_id"] for j in again.read()] == [1, 3]


def test_judge_prompt_keeps_braces():
    text = messages_for(Question(1, "generic", "what is {answer}?", "", ()), "a {question} {x}", PROMPTS).user
    assert text == "Q: what is {answer}? A: a {question} {x}"


def test_judge_prompts_of_the_pinned_file(shared):
    prompts = read_prompts(shared / "data" / "vicuna" / "judge_prompts.jsonl")
    question = Question(1, "math", "How much?", "", ("Seven.",))
    filled = messages_for(question, "Eight.", prompts).user
    assert "How much?" in filled
    assert "Seven." in filled
    assert "{" not in filled.replace("{{", "")


def test_judge_file_without_prompts(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"name": "single-v1", "system_prompt": "", "prompt_template": ""}\n')
    with pytest.raises(QgoftError, match="lacks the judge prompt single-math-v1"):
        read_prompts(tmp_path / "p.jsonl")
