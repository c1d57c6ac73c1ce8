"""An OpenAI-compatible chat server on localhost that misbehaves as told and keeps a record of what it was asked."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Kind = Literal["say", "stall", "limit", "fail", "bad", "rubbish", "half", "cut", "filter", "empty"]


@dataclass(frozen=True)
class Act:
    """What the server does with one request."""

    kind: Kind = "say"
    text: str = "1"
    seconds: float = 0.0
    tops: Mapping[str, float] | None = None
    """Log-probabilities of the likeliest first tokens; the text counts as one token."""


@dataclass
class Server:
    """The address, the requests by their last message, and how many of them were answered in full, which is what costs money."""

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    paid: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    now: int = 0

    @property
    def requests(self) -> int:
        """All requests, with those of the client's own retries."""
        return self.asked.total()


Behave = Callable[[str, int], Act]
"""(the last message, how often it was asked before) → what to do."""


def completion(body: dict[str, Any], act: Act) -> dict[str, Any]:
    """A chat completion as the API writes it; tokens are counted as words."""
    message: dict[str, Any] = {"role": "assistant", "content": act.text}
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": {"cut": "length", "filter": "content_filter"}.get(act.kind, "stop"),
    }
    if act.tops is not None and body.get("logprobs"):
        tops = [{"token": token, "logprob": value, "bytes": None} for token, value in act.tops.items()]
        choice["logprobs"] = {"content": [{"token": act.text, "logprob": act.tops[act.text], "bytes": None, "top_logprobs": tops}]}
    words = sum(len(message["content"].split()) for message in body["messages"])
    usage = {"prompt_tokens": words, "completion_tokens": len(act.text.split()), "total_tokens": words + len(act.text.split())}
    choices = [] if act.kind == "empty" else [choice]
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "judge-2026-01-01", "choices": choices, "usage": usage}


class Handler(BaseHTTPRequestHandler):
    """One connection; the record and what to do hang on its listener."""

    protocol_version = "HTTP/1.1"
    server: "Listener"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def send(self, code: int, body: bytes, headers: Mapping[str, str] | None = None, length: int | None = None) -> None:
        """A response; `length` may promise more than there is."""
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length or len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Answer a chat completion as `behave` says."""
        record, body = self.server.record, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        last = body["messages"][-1]["content"]
        with record.lock:
            record.bodies.append(body)
            before = record.asked[last]
            record.asked[last] += 1
            record.now += 1
            record.most_at_once = max(record.most_at_once, record.now)
        act = self.server.behave(last, before)
        try:
            time.sleep(act.seconds)
            self.act(body, last, act)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with record.lock:
                record.now -= 1

    def act(self, body: dict[str, Any], last: str, act: Act) -> None:
        """The response itself; only one that says something whole is paid for."""
        said = json.dumps(completion(body, act)).encode()
        codes = {"limit": 429, "fail": 500, "bad": 400}
        if act.kind == "rubbish":
            self.send(200, b"<html>busy</html> {")
        elif act.kind == "half":
            self.send(200, said[: len(said) // 2], length=len(said))
            self.close_connection = True
        elif act.kind in codes:
            error = json.dumps({"error": {"message": f"{act.kind}: {act.text}", "type": act.kind, "code": act.kind}}).encode()
            self.send(codes[act.kind], error, {"Retry-After": "1"} if act.kind == "limit" else {})
        else:
            if act.kind not in ("stall", "empty"):
                with self.server.record.lock:
                    self.server.record.paid[last] += 1
            self.send(200, said)


class Listener(ThreadingHTTPServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behave: Behave) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.record = behave, Server(f"http://127.0.0.1:{self.server_address[1]}/v1")

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are no news."""


@contextmanager
def serving(behave: Behave) -> Generator[Server]:
    """A server for the length of a `with`."""
    listener = Listener(behave)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield listener.record
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
