"""The judge behind an endpoint: a real server on the loopback interface that is slow, busy or talks nonsense."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qgoft.errors import QgoftError
from qgoft.judge import openai
from qgoft.judge.vicuna import JudgmentFile, Question, judge_answers, messages_for, read_prompts, unrated
from qgoft.settings import JudgeSettings

PROMPTS = {
    "single-v1": {"system": "Judge.", "user": "Q: {question} A: {answer}"},
    "single-math-v1": {"system": "Judge.", "user": "Q: {question} R: {ref_answer_1} A: {answer}"},
}


class Endpoint:
    """Answers from a script: a status, a text, or "hang"."""

    def __init__(self):
        self.script, self.seen = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((self.path, dict(self.headers), body))
                step = outer.script.pop(0) if outer.script else "Rating: [[5]]"
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


def test_the_protocol(endpoint, monkeypatch):
    monkeypatch.setenv(openai.KEY, "secret-key")
    assert ask(endpoint) == "Rating: [[5]]"
    path, headers, body = endpoint.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-key"
    assert (body["model"], body["temperature"]) == ("stand-in-1", 0)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_busy_and_failing_endpoints_are_asked_again(endpoint):
    pauses = []
    endpoint.script = [429, 500, "[[8]]"]
    assert ask(endpoint, pauses) == "[[8]]"
    assert pauses == [1.0, 2.0]


def test_an_answer_that_comes_short_is_asked_for_again(endpoint):
    endpoint.script = ["short", "[[8]]"]
    assert ask(endpoint) == "[[8]]"


def test_an_endpoint_that_hangs_times_out(endpoint):
    endpoint.script = ["hang", "[[8]]"]
    assert ask(endpoint) == "[[8]]"


@pytest.mark.parametrize(
    ("script", "reason"), [([503, 503, 503], "status 503"), ([400], "status 400"), ([{"no": "choices"}] * 3, "not that of a chat endpoint")]
)
def test_what_stays_without_an_answer(endpoint, script, reason):
    endpoint.script = script
    with pytest.raises(openai.NoAnswer, match=reason):
        ask(endpoint)


def test_a_refused_key_ends_the_run_and_is_not_printed(endpoint, monkeypatch):
    monkeypatch.setenv(openai.KEY, "secret-key")
    endpoint.script = [401]
    with pytest.raises(QgoftError, match="refuses") as caught:
        ask(endpoint)
    assert "secret-key" not in str(caught.value)


@pytest.mark.parametrize(("value", "sent"), [("secret-key\r\n", "Bearer secret-key"), ("", None)])
def test_the_key_as_it_was_meant(endpoint, value, sent, monkeypatch):
    monkeypatch.setenv(openai.KEY, value)
    ask(endpoint)
    assert endpoint.seen[0][1].get("Authorization") == sent


@pytest.mark.parametrize(
    ("value", "message"), [("", "needs a key: set OPENAI_API_KEY"), ("sk-\nsecret", "holds characters that no key has")]
)
def test_a_key_that_cannot_be_is_told_before_anything_is_sent(value, message, monkeypatch):
    monkeypatch.setenv(openai.KEY, value)
    with pytest.raises(QgoftError, match=message) as caught:
        openai.read_key(JudgeSettings(kind="openai", model="m"))
    assert "secret" not in str(caught.value)


def questions(count):
    return [Question(i + 1, "math" if i == 0 else "generic", f"question {i}", "", ("reference",) if i == 0 else ()) for i in range(count)]


def test_failures_are_kept_counted_and_asked_again_alone(endpoint, tmp_path):
    said, asked = [], questions(5)
    endpoint.script = ["[[7]]", "no number", "[[11]]", "[[3]] [[4]]", 400]
    file = JudgmentFile(tmp_path / "judgments.jsonl", {"answers": "x"})
    judgments = judge_answers(asked, ["a"] * 5, endpoint.settings(), file, PROMPTS, said.append)
    assert [j["rating"] for j in judgments] == [7, None, None, None, None]
    assert [j["error"] for j in judgments[1:]] == ["no rating", "rating outside 1 to 10", "several ratings", "status 400"]
    assert unrated(asked, judgments) == [2, 3, 4, 5]
    assert "5 ratings to ask for" in said[0]
    assert "price not stated" in said[0]
    assert said[1] == "judge stand-in-1: without a rating: 1 no rating, 1 rating outside 1 to 10, 1 several ratings, 1 status 400"
    endpoint.seen.clear()
    again = judge_answers(
        asked, ["a"] * 5, endpoint.settings(), JudgmentFile(tmp_path / "judgments.jsonl", {"answers": "x"}), PROMPTS, said.append
    )
    assert [j["rating"] for j in sorted(again, key=lambda j: j["question_id"])] == [7, 5, 5, 5, 5]
    assert len(endpoint.seen) == 4
    assert endpoint.seen[0][2]["messages"][1]["content"] == "Q: question 1 A: a"
    assert file.count() == (9, 4), "what was asked again had failed all the same"


def test_a_dead_endpoint_ends_it_and_the_rest_is_asked_later(endpoint, tmp_path):
    asked, file = questions(8), JudgmentFile(tmp_path / "judgments.jsonl", {"answers": "x"})
    endpoint.script = ["[[7]]", 503, 503, "no number", 429, 500, 503]
    with pytest.raises(QgoftError, match=r"no answer to 3 questions in a row \(status 503\); what it has rated is kept"):
        judge_answers(asked, ["a"] * 8, endpoint.settings(retries=0), file, PROMPTS, print)
    assert len(endpoint.seen) == 7
    judgments = judge_answers(asked, ["a"] * 8, endpoint.settings(retries=0), file, PROMPTS, print)
    assert len(endpoint.seen) == 7 + 7
    assert unrated(asked, judgments) == []


def test_repeats_and_other_answers(endpoint, tmp_path):
    endpoint.script = ["[[2]]", "[[8]]", "[[9]]"]
    path, asked = tmp_path / "judgments.jsonl", questions(1)
    judge_answers(asked, ["a"], endpoint.settings(repeats=3), JudgmentFile(path, {"answers": "x"}), PROMPTS, print)
    assert len(endpoint.seen) == 3
    assert endpoint.seen[0][2]["messages"][1]["content"] == "Q: question 0 R: reference A: a"
    # Other answers: nothing of before is taken over.
    assert JudgmentFile(path, {"answers": "y"}).read() == []


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "judgments.jsonl"
    file = JudgmentFile(path, {"answers": "x"})
    file.append({"question_id": 1, "repeat": 0, "rating": 4.0, "error": None, "text": ""})
    with open(path, "a") as raw:
        raw.write('{"question_id": 2, "rep')
    again = JudgmentFile(path, {"answers": "x"})
    again.append({"question_id": 3, "repeat": 0, "rating": 5.0, "error": None, "text": ""})
    assert [j["question_id"] for j in again.read()] == [1, 3]


def test_braces_in_answers_are_left_alone():
    text = messages_for(Question(1, "generic", "what is {answer}?", "", ()), "a {question} {x}", PROMPTS).user
    assert text == "Q: what is {answer}? A: a {question} {x}"


def test_prompts_of_the_pinned_file(shared):
    prompts = read_prompts(shared / "data" / "vicuna" / "judge_prompts.jsonl")
    question = Question(1, "math", "How much?", "", ("Seven.",))
    filled = messages_for(question, "Eight.", prompts).user
    assert "How much?" in filled
    assert "Seven." in filled
    assert "{" not in filled.replace("{{", "")


def test_a_file_without_prompts(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"name": "single-v1", "system_prompt": "", "prompt_template": ""}\n')
    with pytest.raises(QgoftError, match="lacks the judge prompt single-math-v1"):
        read_prompts(tmp_path / "p.jsonl")
