"""A server that speaks as much of OpenAI's protocol as the client asks for, on loopback over real
HTTP, with faults by order.

Answers depend on the payload alone. What the server can do, `can`, is what vLLM can unless it is
told otherwise; requests that ask for it are kept apart in `probes`. `faults` maps a part of the
last message to what goes wrong with it, one fault a time it is asked; after the last of them it is
answered. One in `refuse` payloads is answered by a refusal, always.
"""

import hashlib
import json
import math
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from miner.llm.server import PROBE
from miner.llm.verify import AGAIN

WORDS = [
    "copper",
    "honey",
    "glass",
    "tides",
    "moon",
    "lamps",
    "metal",
    "current",
    "dance",
    "hive",
    "river",
    "stone",
    "cloud",
    "paper",
    "engine",
    "garden",
    "winter",
    "market",
    "bridge",
    "signal",
    "window",
    "harbour",
    "letter",
    "forest",
    "kettle",
    "mirror",
    "ladder",
    "pocket",
    "saddle",
    "timber",
    "velvet",
    "whistle",
    "anchor",
    "basket",
    "candle",
    "feather",
    "hammer",
    "island",
]
HUGE = 50 * 2**20
LEAST = -6.0  # of the log-probabilities that are among the top


def words_of(payload, count=4):
    digest = hashlib.blake2b(
        json.dumps(payload, sort_keys=True).encode(), digest_size=count
    ).digest()
    return "there was a " + " and the ".join(WORDS[byte % len(WORDS)] for byte in digest) + "."


def logprobs_of(payload):
    """What the two labels get: the first -1, the second by the last message and the model."""
    first, second = payload["logprob_token_ids"]
    return {first: -1.0, second: -1.0 - logit(payload["model"], payload["messages"][-1]["content"])}


def top_of(payload):
    """The likeliest tokens: Yes in two spellings, No if it is likely enough, and others."""
    no = -1.0 - logit(payload["model"], payload["messages"][-1]["content"])
    half = -1.0 + math.log(0.5)
    said = {"Yes": half, "\u2581yes": half, " No": no, "The": -3.0, "Perhaps": LEAST}
    return {token: value for token, value in said.items() if value >= LEAST}


def verdict_of(payload):
    """A text that says the likelier label, in its own way; neither if both are as likely."""
    value = logit(payload["model"], payload["messages"][-1]["content"])
    return "Perhaps." if abs(value) < 0.5 else "**Yes**, it does." if value > 0 else "no"


def logit(model, user):
    return hashlib.blake2b(f"{model} {user}".encode(), digest_size=1).digest()[0] / 16 - 8


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, body, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(data))),
            *headers,
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.moved():
            return
        if not self.server.models:
            return self.send(404, {"error": {"message": "no such path"}})
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "tests"}
            for name in self.server.models
        ]
        self.send(200, {"object": "list", "data": models})

    def moved(self):
        """Note the key, and send to another place what is to go there."""
        at, inside = self.server, self.path.startswith("/moved")
        at.keys.append(self.headers.get("Authorization"))
        if inside or at.elsewhere:
            at.hops += 1
            to = self.path.removeprefix("/moved") if inside else at.elsewhere + self.path
            self.send(307, {}, [("Location", to)])
        return inside or at.elsewhere

    def do_POST(self):
        at = self.server
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.moved():
            return
        if self.path.endswith("/tokenize"):
            if at.can["ids"]:
                return self.send(200, {"tokens": at.tokens.get(payload["prompt"], [1, 2])})
            return self.send(404, {"error": {"message": "no such path"}})
        if payload["messages"][0]["content"] == PROBE:
            at.probes.append(payload)
        if what := self.beyond(payload):
            return self.send(400, {"error": {"message": f"unknown: {what}"}})
        if payload["messages"][0]["content"] == PROBE:
            return self.answer(payload, at.faults.get("probe", ["ok"])[-1])
        user = payload["messages"][-1]["content"]
        key = json.dumps(payload, sort_keys=True)
        with at.lock:
            at.open += 1
            at.most_open = max(at.most_open, at.open)
            planned = next((faults for part, faults in at.faults.items() if part in user), [])
            refused = (
                at.refuse
                and hashlib.blake2b(key.encode(), digest_size=1).digest()[0] % at.refuse == 0
            )
            fault = "refusal" if refused else "ok"
            first = user.partition(f"\n{AGAIN}")[0]  # a retry says what was wrong below
            fault = planned[at.asked[first]] if at.asked[first] < len(planned) else fault
            at.asked[first] += 1
            at.received.append((key, fault))
        try:
            self.answer(payload, fault)
            with at.lock:
                at.finished += fault in ("ok", "refusal")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with at.lock:
                at.open -= 1

    def beyond(self, payload):
        """Return what is asked for that this server refuses."""
        can, kind = self.server.can, payload.get("response_format", {}).get("type")
        if kind and kind not in can["formats"]:
            return kind
        if can["top"] and payload.get("top_logprobs", 0) > can["top"]:
            return "top_logprobs"
        return "template" if "chat_template_kwargs" in payload and not can["template"] else None

    def answer(self, payload, fault):
        time.sleep(self.server.delay)
        text = words_of(payload)
        if fault[:3] in ("429", "500", "400", "401"):
            self.send(
                int(fault[:3]),
                {"error": {"message": f"as ordered: {fault}"}},
                [("Retry-After", "0.05")] if fault == "429" else [],
            )
        elif fault == "stall":
            time.sleep(2.5)
            self.close_connection = True
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"mess')
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault == "half":
            self.send(200, b'{"choices": [{"message": {"content": "ab')
        elif fault.startswith("says "):
            self.send(200, self.completion(json.dumps({"text": f"{fault} {text}"})))
        elif fault == "huge":
            self.send(200, self.completion("x" * HUGE))
        elif payload.get("logprobs") and self.server.can["ids"] and "top_logprobs" not in payload:
            said = {f"token_id:{id}": value for id, value in logprobs_of(payload).items()}
            self.send(200, self.completion("Yes", said))
        elif payload.get("top_logprobs") and self.server.can["top"]:
            self.send(200, self.completion("Yes", top_of(payload)))
        elif "response_format" not in payload and "JSON" not in payload["messages"][0]["content"]:
            self.send(200, self.completion(verdict_of(payload)))
        else:
            said = {
                "refusal": json.dumps({"text": "I'm sorry, but I cannot help with that."}),
                "empty": "",
                "prose": "Sure! Here it is.",
                "quote": '{"text": "unbalanced}',
                "chatty": "Here: " + json.dumps({"text": text}),
                "copy": json.dumps(
                    {
                        "text": (
                            payload["messages"][-1]["content"]
                            .split("<passage>")[-1]
                            .split("</passage>")[0]
                        )
                    }
                ),
            }.get(fault, json.dumps({"text": text}))
            self.send(200, self.completion(said))

    def completion(self, text, logprobs=None):
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
        }
        if logprobs:
            said = [
                {"token": token, "logprob": value, "bytes": None}
                for token, value in logprobs.items()
            ]
            choice["logprobs"] = {
                "content": [{"token": "Yes", "logprob": -1.0, "bytes": None, "top_logprobs": said}]
            }
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "tiny",
            "choices": [choice],
            "usage": usage,
        }


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 64

    def handle_error(self, request, client_address):
        pass  # a client that was killed


@contextmanager
def llm_server(faults=None, delay=0.0, refuse=0, can=None):
    """Serve; the server's `received`, `finished` and `most_open` say what came."""
    server = Server(("127.0.0.1", 0), Handler)
    server.lock, server.delay, server.faults, server.refuse = (
        threading.Lock(),
        delay,
        faults or {},
        refuse,
    )
    server.tokens, server.models = {"Yes": [7], "No": [8]}, ("tiny", "large")
    server.elsewhere, server.hops, server.probes = None, 0, []
    server.can = {
        "ids": True,
        "top": 20,
        "template": True,
        "formats": ("json_schema", "json_object"),
    } | (can or {})
    server.asked, server.received, server.finished, server.open, server.most_open, server.keys = (
        Counter(),
        [],
        0,
        0,
        0,
        [],
    )
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
