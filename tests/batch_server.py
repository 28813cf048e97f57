"""A small OpenAI for tests: Files, Batches, Models, chat completions and responses over real HTTP.

It speaks the shapes of the public API and misbehaves on demand, at any step. What it bills is counted
in its own way (real picture sizes, words instead of characters), so that an estimate has something to be
wrong about. Time passes with each look at a batch, not with the clock: a test is as fast as its polls.

    with BatchServer() as server:
        server.scripts["Blue sofa"] = ["refusal"]       # what happens to the rows with this title
        server.plans.append("expire:3")                 # what happens to the next batch
        server.faults.append(Fault("POST /batches", "drop-reply"))
        run_cli("clean", "run", env=server.env)
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import random
import re
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from PIL import Image

KEY = "sk-test-DoNotLeakThisKey-0123456789"
MODELS = ("gpt-5-nano", "gpt-6-luna", "tiny-vision")
OPEN = ("validating", "in_progress", "finalizing", "cancelling")


@dataclass
class Fault:
    """Something that happens to an HTTP call.

    `where`: pattern for the start of "METHOD /path" without /v1; `what`: `drop-reply` (done, but the
    connection is cut), `drop-request` (cut before it is done), `lost:CODE` (done, but answered with an
    error), `status:CODE[:code]`, `delay:SECONDS`, `truncate`, `truncate-silently`, `reorder`, `gone`;
    `times`: how often; `skip`: how many calls pass first.
    """

    where: str
    what: str
    times: int = 1
    skip: int = 0

    def strikes(self, call: str) -> bool:
        if not re.match(self.where, call) or self.times <= 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class StoredFile:
    id: str
    filename: str
    content: bytes
    purpose: str
    created_at: int


@dataclass
class StoredBatch:
    id: str
    facts: dict[str, Any]
    plan: str = ""
    looks: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    results: list[tuple[dict[str, Any], bool]] = field(default_factory=list)  # line, is an error
    tokens: int = 0
    late: int = 0

    @property
    def status(self) -> str:
        return str(self.facts["status"])


class CutError(Exception):
    """The connection is closed without an answer."""


class BatchServer:
    """The server, running in a thread of the test."""

    def __init__(self, *, seed: int = 0) -> None:
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, StoredBatch] = {}
        self.faults: list[Fault] = []
        self.plans: list[str] = []
        self.scripts: dict[str, list[str]] = {}  # title -> what happens at the 1st, 2nd ... request
        self.asked: Counter[str] = Counter()  # custom_id -> how often it was run
        self.titles: Counter[str] = Counter()
        self.prompt_tokens = self.completion_tokens = 0  # of batches
        self.queue_limit = 10**9
        self.shutdown_date: str | None = None
        self.hidden_batches = 0  # listings that do not show the newest batch yet
        self.keys: set[str] = {KEY}
        self.models: set[str] = set(MODELS)
        self.calls: list[str] = []
        self.on_call: Callable[[str, str], None] = lambda call, moment: None
        self.bodies: list[dict[str, Any]] = []  # of synchronous requests
        self.lock = threading.RLock()
        self.random = random.Random(seed)
        self.scripts_single_requests = False
        self.polls_to_run = 1
        self.clock_offset_s = 0
        self.keeps_metadata = True
        self.texts: dict[str, dict[str, Any]] = {}  # title -> what its message has instead
        self.max_open = 0
        self._server = _QuietServer(("127.0.0.1", 0), type("ItsHandler", (Handler,), {"api": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> BatchServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def env(self) -> dict[str, str]:
        """What points a `furnclip` process at this server, with waits short enough for a test."""
        return {
            "OPENAI_API_KEY": KEY,
            "FURNCLIP_CLEAN__BACKEND": "openai",
            "FURNCLIP_CLEAN__BASE_URL": self.url,
            "FURNCLIP_CLEAN__POLL_INTERVAL_S": "0.01",
            "FURNCLIP_CLEAN__RECONCILE_WAIT_S": "0.05",
            "FURNCLIP_CLEAN__RETRY_WAIT_S": "0.02",
        }

    @property
    def ran(self) -> list[StoredBatch]:
        """Batches that were not refused at validation."""
        return [batch for batch in self.batches.values() if batch.status != "failed"]

    # --- models and single requests

    def model(self, name: str) -> dict[str, Any]:
        if name not in self.models:
            raise ApiError(404, "model_not_found", f"The model '{name}' does not exist")
        facts = {"id": name, "object": "model", "created": 1754425777, "owned_by": "system"}
        return {**facts, "shutdown_date": self.shutdown_date}

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            self.bodies.append(body)
            script = self._script(_title(body)) if self.scripts_single_requests else ""
        status, reply = self._answer(body, script)
        if status != 200:
            error = reply["error"]
            raise ApiError(status, error["code"], error["message"])
        return reply

    # --- files

    def upload(self, filename: str, content: bytes, purpose: str) -> dict[str, Any]:
        with self.lock:
            if not filename.endswith(".jsonl") or not content:
                raise ApiError(400, "invalid_value", "Invalid file format for Batch API. Must be .jsonl")
            stored = self._store(filename, content, purpose)
            return _file_object(stored)

    def list_files(self, purpose: str | None) -> dict[str, Any]:
        found = [f for f in self.files.values() if purpose in (None, f.purpose)]
        data = [_file_object(f) for f in sorted(found, key=lambda f: -f.created_at)]
        return {"object": "list", "data": data, "has_more": False}

    def _store(self, filename: str, content: bytes, purpose: str) -> StoredFile:
        file_id = f"file-{len(self.files) + 1:06d}"
        self.files[file_id] = StoredFile(file_id, filename, content, purpose, int(time.time()))
        return self.files[file_id]

    # --- batches

    def create_batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            if wanted.get("completion_window") != "24h":
                raise ApiError(400, "invalid_value", "Invalid 'completion_window'")
            for name, value in (wanted.get("metadata") or {}).items():
                if not isinstance(value, str):
                    raise ApiError(400, "invalid_type", f"metadata.{name} must be a string")
            batch_id = f"batch_{len(self.batches) + 1:06d}"
            now = int(time.time()) + self.clock_offset_s
            facts: dict[str, Any] = {
                "id": batch_id,
                "object": "batch",
                "endpoint": wanted["endpoint"],
                "input_file_id": wanted["input_file_id"],
                "completion_window": "24h",
                "status": "validating",
                "created_at": now,
                "expires_at": now + 86_400,
                "metadata": wanted.get("metadata") if self.keeps_metadata else None,
                "output_file_id": None,
                "error_file_id": None,
                "errors": None,
                "request_counts": {"total": 0, "completed": 0, "failed": 0},
            }
            plan = self.plans.pop(0) if self.plans else ""
            batch = StoredBatch(batch_id, facts, plan)
            self.batches[batch_id] = batch
            return dict(facts)

    def list_batches(self, limit: int, after: str | None) -> dict[str, Any]:
        with self.lock:
            newest_first = list(reversed(self.batches.values()))
            if self.hidden_batches > 0 and newest_first:
                self.hidden_batches -= 1
                newest_first = newest_first[1:]
            ids = [batch.id for batch in newest_first]
            start = ids.index(after) + 1 if after in ids else 0
            page = newest_first[start : start + limit]
            return {
                "object": "list",
                "data": [dict(batch.facts) for batch in page],
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
                "has_more": start + limit < len(ids),
            }

    def look(self, batch_id: str) -> dict[str, Any]:
        """The batch, one step further on than at the last look."""
        with self.lock:
            batch = self._batch(batch_id)
            self._advance(batch)
            self.max_open = max(self.max_open, sum(b.status in OPEN for b in self.batches.values()))
            facts = dict(batch.facts)
            if batch.late > 0 and batch.status == "completed":
                batch.late -= 1
                facts.update(output_file_id=None, error_file_id=None)
            return facts

    def cancel(self, batch_id: str) -> dict[str, Any]:
        with self.lock:
            batch = self._batch(batch_id)
            if batch.status in ("completed", "failed"):
                raise ApiError(409, "", f"Cannot cancel a batch with status '{batch.status}'.")
            if batch.status in OPEN:
                batch.facts["status"] = "cancelling"
            return dict(batch.facts)

    def _batch(self, batch_id: str) -> StoredBatch:
        if batch_id not in self.batches:
            raise ApiError(404, "", f"No batch found with id '{batch_id}'.")
        return self.batches[batch_id]

    def _advance(self, batch: StoredBatch) -> None:
        status = batch.status
        batch.looks += 1
        plan, _, number = batch.plan.partition(":")
        if status == "validating":
            if plan == "stuck" and batch.looks <= int(number):
                return
            self._validate(batch)
        elif status == "in_progress":
            self._run(batch, plan, number)
        elif status == "finalizing" and plan == "stuck-finalizing" and batch.looks <= int(number):
            batch.facts["expires_at"] = int(time.time()) - 1
        elif status == "finalizing":
            self._publish(batch, "expired" if plan == "expire" else "completed", plan)
        elif status == "cancelling":
            self._publish(batch, "cancelled", plan)
        elif plan == "odd-status" and status == "paused":
            batch.facts["status"] = "in_progress"

    def _validate(self, batch: StoredBatch) -> None:
        plan, _, detail = batch.plan.partition(":")
        errors = [_error(detail, "told to fail", None, None)] if plan == "fail" else self._problems(batch)
        if errors:
            batch.facts.update(status="failed", failed_at=int(time.time()))
            batch.facts["errors"] = {"object": "list", "data": errors}
            return
        batch.facts["status"] = "paused" if plan == "odd-status" else "in_progress"
        batch.facts["in_progress_at"] = int(time.time())
        batch.facts["request_counts"] = {"total": len(batch.requests), "completed": 0, "failed": 0}

    def _problems(self, batch: StoredBatch) -> list[dict[str, Any]]:
        file = self.files.get(batch.facts["input_file_id"])
        if file is None:
            return [_error("invalid_request", "Cannot find file", "file_id", None)]
        errors = []
        seen: set[str] = set()
        batch.requests = []
        for number, line in enumerate(file.content.split(b"\n")[:-1], start=1):
            try:
                request = json.loads(line)
            except ValueError:
                errors.append(_error("invalid_json_line", "not JSON", None, number))
                continue
            problem = _line_problem(request, batch.facts["endpoint"], seen, self.models)
            title = _title(request.get("body", {})) if not problem else ""
            if "invalid-line" in self.scripts.get(title, []):
                problem = ("invalid_request", "body.messages", "bad picture")
            if problem:
                errors.append(_error(problem[0], problem[2], problem[1], number))
            seen.add(request.get("custom_id", ""))
            batch.requests.append(request)
        batch.tokens = sum(prompt_tokens(request["body"]) for request in batch.requests) if not errors else 0
        queued = sum(b.tokens for b in self.batches.values() if b.status in OPEN and b is not batch)
        if not errors and queued + batch.tokens > self.queue_limit:
            text = "Enqueued token limit reached for gpt-5-nano in organization org-x. Limit: "
            text += f"{self.queue_limit:,} enqueued tokens. Please try again once some in_progress batches "
            text += "have been completed."
            errors = [_error("token_limit_exceeded", text, None, None)]
        return errors

    def _run(self, batch: StoredBatch, plan: str, number: str) -> None:
        if len(batch.results) < len(batch.requests) and batch.looks > self.polls_to_run:
            stop = int(number) if plan in ("expire", "cancel") else len(batch.requests)
            for request in batch.requests[:stop]:
                self._execute(batch, request)
            if plan == "expire":
                batch.results += [(_expired(r["custom_id"]), True) for r in batch.requests[stop:]]
            batch.facts["status"] = "cancelling" if plan == "cancel" else "finalizing"
            good = sum(not is_error for _, is_error in batch.results)
            counts = {
                "total": len(batch.requests),
                "completed": good,
                "failed": len(batch.results) - good,
            }
            batch.facts["request_counts"] = counts

    def _execute(self, batch: StoredBatch, request: dict[str, Any]) -> None:
        custom_id, body = request["custom_id"], request["body"]
        self.asked[custom_id] += 1
        script = self._script(_title(body))
        if script == "missing":
            return
        status, reply = self._answer(body, script)
        line = {
            "id": f"batch_req_{len(batch.results):06d}",
            "custom_id": custom_id,
            "response": {"status_code": status, "request_id": "req_1", "body": reply},
            "error": None,
        }
        if status == 200:
            usage = reply["usage"]
            self.prompt_tokens += usage.get("prompt_tokens", usage.get("input_tokens"))
            self.completion_tokens += usage.get("completion_tokens", usage.get("output_tokens"))
        if script == "server-error-line":
            line.update(response=None, error={"code": "server_error", "message": "try again"})
        batch.results.append(
            (line, script != "error-in-output" and (status != 200 or line["error"] is not None))
        )
        if script == "doubled":
            late = json.loads(json.dumps(line))
            late["response"]["body"]["choices"][0]["message"]["content"] = "{}"
            batch.results.append((late, False))
            batch.results.append(({**line, "custom_id": "nobody-asked"}, False))

    def _publish(self, batch: StoredBatch, status: str, plan: str) -> None:
        good = [line for line, is_error in batch.results if not is_error]
        bad = [line for line, is_error in batch.results if is_error]
        for name, lines in (("output_file_id", good), ("error_file_id", bad)):
            content = b"".join(self._dump(line) for line in lines)
            stored = self._store(f"{batch.id}_{name}.jsonl", content, "batch_output") if lines else None
            batch.facts[name] = stored.id if stored else ("" if plan == "empty-ids" else None)
        if plan == "late-ids":
            batch.late = 3
        if plan == "wrong-counts":
            batch.facts["request_counts"].update(completed=len(batch.requests), failed=0)
        if plan != "no-usage":
            batch.facts["usage"] = _batch_usage(good)
        batch.facts.update(status=status, completed_at=int(time.time()))

    @staticmethod
    def _dump(line: dict[str, Any]) -> bytes:
        # Raw U+2028 inside a string is legal JSON, and what the service really sends.
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"

    # --- answers

    def _script(self, title: str) -> str:
        steps = self.scripts.get(title, [])
        place = self.titles[title]
        self.titles[title] += 1
        return steps[place] if place < len(steps) else ""

    def _answer(self, body: dict[str, Any], script: str) -> tuple[int, dict[str, Any]]:
        if body.get("model") not in self.models:
            return 404, _api_error("model_not_found", f"The model '{body.get('model')}' does not exist")
        problem = _dialect_problem(body)
        if problem:
            return 400, _api_error("unsupported_value", problem)
        kind, _, number = script.partition(":")
        if kind == "http":
            texts = {"429": "rate_limit_exceeded", "404": "model_not_found"}
            message = "The model `gpt-5-nano-batch` does not exist" if number == "404" else "told to fail"
            return int(number), _api_error(texts.get(number, "told"), message)
        cap = body.get("max_completion_tokens", body.get("max_tokens", body.get("max_output_tokens", 0)))
        content, finish, refusal = json.dumps(answer_for(body), ensure_ascii=False), "stop", None
        if kind == "refusal":
            content, refusal = "", "I'm sorry, I can't help with that."
        elif kind == "length" or (kind == "length-under" and cap < int(number)):
            content, finish = content[:20], "length"
        elif kind == "content-filter":
            content, finish = "", "content_filter"
        elif kind in ("empty", "bad-json", "wrong-word", "u2028"):
            content = _spoilt(kind, body)
        return 200, self._completion(body, content, finish, refusal)

    def _completion(
        self, body: dict[str, Any], content: str, finish: str, refusal: str | None
    ) -> dict[str, Any]:
        prompt = prompt_tokens(body)
        completion = 8 + math.ceil(len(content) / 3.6)
        if "input" in body:
            return _response_object(body, content, finish, refusal, prompt, completion)
        message = {"role": "assistant", "content": content or None, "refusal": refusal, "annotations": []}
        message.update(self.texts.get(_title(body), {}))
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"] + "-2025-08-07",
            "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }


class ApiError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = _api_error(code, message)


# --- what is inside a request


def _title(body: dict[str, Any]) -> str:
    for message in body.get("messages") or body.get("input") or []:
        if message["role"] == "user":
            title = json.loads(message["content"][0]["text"])["title"]
            return str(title)
    return ""


def _picture(body: dict[str, Any]) -> bytes:
    content = (body.get("messages") or body.get("input"))[-1]["content"][1]
    url = content["image_url"]["url"] if isinstance(content["image_url"], dict) else content["image_url"]
    assert url.startswith("data:image/jpeg;base64,")
    return base64.b64decode(url.split(",", 1)[1], validate=True)


def _schema(body: dict[str, Any]) -> dict[str, Any]:
    if "input" in body:
        return dict(body["text"]["format"]["schema"])
    return dict(body["response_format"]["json_schema"]["schema"])


def answer_for(body: dict[str, Any]) -> dict[str, Any]:
    """A sensible, always equal answer: the title in lower case, words picked by its hash."""
    title = _title(body)
    seed = int.from_bytes(hashlib.sha256(title.encode()).digest()[:8], "big")
    answer: dict[str, Any] = {"clean_title": re.sub(r"\s+", " ", title.lower()).strip()[:120] or "product"}
    for place, (name, facts) in enumerate(_schema(body)["properties"].items()):
        if "enum" in facts:
            answer[name] = facts["enum"][(seed >> (8 * place)) % len(facts["enum"])]
    if "queries" in _schema(body)["properties"]:
        kind = answer["object_type"]
        answer["queries"] = [f"{answer['color']} {kind}", f"{answer['style']} {kind}", f"nice {kind} please"]
    return answer


def _spoilt(kind: str, body: dict[str, Any]) -> str:
    answer = answer_for(body)
    if kind == "empty":
        return ""
    if kind == "bad-json":
        return json.dumps(answer)[:-2]
    if kind == "u2028":
        answer["clean_title"] += " \u2028with\u2029 a\x85 break"
    else:
        answer["color"] = "octarine"
    return json.dumps(answer, ensure_ascii=False)


def prompt_tokens(body: dict[str, Any]) -> int:
    """Counted by words and signs, and by the picture's real size: not the way furnclip estimates."""
    width_px, height_px = Image.open(io.BytesIO(_picture(body))).size
    patches = math.ceil(width_px / 32) * math.ceil(height_px / 32)
    text = json.dumps(_schema(body)) + _title(body)
    text += str(body.get("instructions", "")) or str(body["messages"][0]["content"])
    return math.ceil(patches * 1.5) + round(len(re.findall(r"\w+|[^\w\s]", text)) * 0.9) + 11


def _dialect_problem(body: dict[str, Any]) -> str:
    for name in ("temperature", "max_tokens", "top_p", "stop", "n"):
        if name in body and body["model"].startswith("gpt-5"):
            return f"Unsupported parameter: '{name}'"
    effort = body.get("reasoning_effort") or (body.get("reasoning") or {}).get("effort")
    if effort == "none" and body["model"] == "gpt-5-nano":
        return "Unsupported value: 'reasoning_effort' does not support 'none' with this model."
    schema = _schema(body)
    if schema.get("additionalProperties") is not False or set(schema["required"]) != set(
        schema["properties"]
    ):
        return "Invalid schema for response_format"
    return ""


def _line_problem(
    request: dict[str, Any], endpoint: str, seen: set[str], models: set[str]
) -> tuple[str, str | None, str] | None:
    for name in ("custom_id", "method", "url", "body"):
        if name not in request:
            return ("missing_required_parameter", name, f"Missing {name}")
    if request["custom_id"] in seen:
        return ("duplicate_custom_id", None, "The custom_id is already used")
    if request["url"] != endpoint:
        return ("invalid_url", "url", "The URL differs from the batch's endpoint")
    if request["body"].get("stream"):
        return ("streaming_unsupported", "body.stream", "Streaming is not supported")
    if request["body"].get("model") not in models:
        return ("model_not_found", "body.model", "The model does not exist")
    return None


# --- shapes


def _api_error(code: str, message: str) -> dict[str, Any]:
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": None,
            "code": code or None,
        }
    }


def _error(code: str, message: str, param: str | None, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}


def _expired(custom_id: str) -> dict[str, Any]:
    message = "This request could not be executed before the completion window expired."
    error = {"code": "batch_expired", "message": message}
    return {"id": "batch_req_x", "custom_id": custom_id, "response": None, "error": error}


def _file_object(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": len(file.content),
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def _batch_usage(lines: list[dict[str, Any]]) -> dict[str, Any]:
    usages = [(line.get("response") or {}).get("body", {}).get("usage", {}) for line in lines]
    prompt = sum(u.get("prompt_tokens", u.get("input_tokens", 0)) for u in usages)
    completion = sum(u.get("completion_tokens", u.get("output_tokens", 0)) for u in usages)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }


def _response_object(
    body: dict[str, Any], content: str, finish: str, refusal: str | None, prompt: int, completion: int
) -> dict[str, Any]:
    piece = (
        {"type": "refusal", "refusal": refusal}
        if refusal
        else {"type": "output_text", "text": content, "annotations": []}
    )
    return {
        "id": "resp_1",
        "object": "response",
        "model": body["model"],
        "status": "incomplete" if finish == "length" else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if finish == "length" else None,
        "output": [{"type": "message", "role": "assistant", "content": [piece]}],
        "usage": {
            "input_tokens": prompt,
            "output_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


# --- HTTP


class _QuietServer(ThreadingHTTPServer):
    """Clients are killed here all the time; that is no error of the server."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection; `api` is set by the server that makes it."""

    api: BatchServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self, method: str) -> None:
        api = self.api
        url = urlparse(self.path)
        path = url.path.removeprefix("/v1")
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = f"{method} {path}"
        with api.lock:
            api.calls.append(call)
            what = next((fault.what for fault in api.faults if fault.strikes(call)), "")
        try:
            api.on_call(call, "before")
            self._before(what)
            reply = self._route(call, path.strip("/").split("/"), query, body)
            api.on_call(call, "after")
            self._after(what)
            self._reply(200, reply, what)
        except ApiError as error:
            self._reply(error.status, error.body, "")
        except (CutError, BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _before(self, what: str) -> None:
        kind, _, rest = what.partition(":")
        if kind == "delay-first":
            time.sleep(float(rest))
        if kind == "drop-request":
            raise CutError
        if kind == "gone":
            raise ApiError(404, "", "No such File object")
        if kind == "status":
            status, _, code = rest.partition(":")
            raise ApiError(int(status), code, "told to fail")
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.api.keys:
            raise ApiError(401, "invalid_api_key", "Incorrect API key provided: " + KEY)

    def _after(self, what: str) -> None:
        kind, _, rest = what.partition(":")
        if kind == "delay":
            time.sleep(float(rest))
        if kind == "drop-reply":
            raise CutError
        if kind == "lost":
            raise ApiError(int(rest), "", "told to fail")

    def _route(self, call: str, parts: list[str], query: dict[str, str], body: bytes) -> Any:
        if call in ("POST /chat/completions", "POST /responses"):
            return self.api.ask(json.loads(body))
        if parts[0] == "models":
            return self.api.model(unquote("/".join(parts[1:])))
        if parts[0] == "files":
            return self._files(call, parts, query, body)
        if call == "POST /batches":
            return self.api.create_batch(json.loads(body))
        if call == "GET /batches":
            return self.api.list_batches(int(query.get("limit", 20)), query.get("after"))
        return self.api.cancel(parts[1]) if parts[-1] == "cancel" else self.api.look(parts[1])

    def _files(self, call: str, parts: list[str], query: dict[str, str], body: bytes) -> Any:
        if call == "POST /files":
            return self.api.upload(*_multipart(self.headers["Content-Type"], body))
        if call == "GET /files":
            return self.api.list_files(query.get("purpose"))
        if parts[1] not in self.api.files:
            raise ApiError(404, "", f"No such File object: {parts[1]}")
        file = self.api.files[parts[1]]
        return file.content if parts[-1] == "content" else _file_object(file)

    def _reply(self, status: int, reply: Any, what: str) -> None:
        content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        if what == "reorder":
            lines = content.split(b"\n")[:-1]
            self.api.random.shuffle(lines)
            content = b"".join(line + b"\n" for line in lines)
        declared = len(content)
        if what.startswith("truncate"):
            content = content[: len(content) * 2 // 3]
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "5")
        if what == "truncate-silently":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(declared))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = self.close_connection or what.startswith("truncate")


def _multipart(content_type: str, body: bytes) -> tuple[str, bytes, str]:
    """(filename, content, purpose) of an upload."""
    boundary = b"--" + content_type.split("boundary=")[1].strip('"').encode()
    fields: dict[str, bytes] = defaultdict(bytes)
    filename = ""
    for piece in body.split(boundary)[1:-1]:
        head, _, content = piece.lstrip(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        found = re.search(rb'filename="([^"]*)"', head)
        assert name
        fields[name.group(1).decode()] = content.removesuffix(b"\r\n")
        filename = found.group(1).decode() if found else filename
    return filename, fields["file"], fields["purpose"].decode()
