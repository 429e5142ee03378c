"""The load profile: 50 clients that chat without pause, and 20 steps that run in the background all the time.

A 429 is an answer like any other here: the client waits as long as it was told and asks again.
"""

import json
import time
from pathlib import Path
from typing import Any

from locust import FastHttpUser, events, task
from locust.env import Environment

CHATS, STEPS = 50, 20
ENDS = {"completed", "failed", "cancelled", "incomplete"}

counted = {"429": 0, "5xx": 0, "unanswered": 0, "steps": 0, "steps not completed": 0}
asked: dict[str, Any] = {}


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    parser.add_argument("--model", required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--key", env_var="OPENAI_API_KEY", is_secret=True, default="none")


@events.init.add_listener
def _begin(environment: Environment, **_: Any) -> None:
    asked["model"] = environment.parsed_options.model
    asked["headers"] = {"authorization": f"Bearer {environment.parsed_options.key}"}


class Client(FastHttpUser):
    """Counts what it is answered."""

    abstract = True
    network_timeout = connection_timeout = 120.0

    def ask(self, name: str, method: str, path: str, body: Any = None) -> Any:
        """The answer's body, once it isn't 429; None where it failed."""
        while True:
            with self.client.request(
                method, path, name=name, json=body, headers=asked["headers"], catch_response=True
            ) as answer:
                if answer.status_code == 429:
                    counted["429"] += 1
                    answer.request_meta["name"] = f"{name}: 429"
                    answer.success()
                elif answer.status_code == 200:
                    answer.success()
                    return answer.text
                else:
                    counted["5xx" if answer.status_code >= 500 else "unanswered"] += 1
                    answer.failure(f"{answer.status_code} {(answer.text or '')[:200]}")
                    return None
            time.sleep(float(answer.headers.get("retry-after", 1)))


class Chat(Client):
    """A client that chats: every second answer is streamed."""

    fixed_count = CHATS

    @task
    def whole(self) -> None:
        self.ask("chat", "POST", "/v1/chat/completions", _chat())

    @task
    def streamed(self) -> None:
        said = self.ask("chat, streamed", "POST", "/v1/chat/completions", {**_chat(), "stream": True})
        if said is not None and not said.rstrip().endswith("data: [DONE]"):
            counted["unanswered"] += 1


class Background(Client):
    """Keeps one step running in the background and looks after it."""

    fixed_count = STEPS

    @task
    def step(self) -> None:
        body = {"model": asked["model"], "input": "Hello there", "background": True, "max_output_tokens": 32}
        begun, started = self.ask("step, begun", "POST", "/v1/responses", body), time.perf_counter()
        while begun is not None:
            seen = self.ask("step, looked at", "GET", f"/v1/responses/{json.loads(begun)['id']}")
            if seen is None:
                return
            if (status := json.loads(seen)["status"]) in ENDS:
                break
            time.sleep(1)
        if begun is not None:
            counted["steps"] += 1
            counted["steps not completed"] += status != "completed"
            took = (time.perf_counter() - started) * 1000
            events.request.fire(
                request_type="step", name="step", response_time=took, response_length=0, exception=None, context={}
            )


def _chat() -> dict[str, Any]:
    messages = [{"role": "user", "content": "Say hello, and count to 20."}]
    return {"model": asked["model"], "messages": messages, "max_tokens": 32}


@events.quitting.add_listener
def _end(environment: Environment, **_: Any) -> None:
    stats = environment.stats
    chats = [stats.get("chat", "POST"), stats.get("chat, streamed", "POST")]
    steps = stats.get("step", "step")
    answered = sum(entry.num_requests - entry.num_failures for entry in chats)
    length = max(entry.last_request_timestamp or 0 for entry in chats) - (stats.total.start_time or 0)
    checks = [
        _check("no 5xx", counted["5xx"] == 0, f"{counted['5xx']} answers were 5xx. {_errors(environment)}"),
        _check("every request is answered", counted["unanswered"] == 0, _errors(environment)),
        _check("chats are answered", answered > 0, "not one was"),
        _check("steps end", counted["steps"] > 0, "not one did"),
        _check("steps complete", counted["steps not completed"] == 0, f"{counted['steps not completed']} did not"),
    ]
    figures = {
        "chats/s": round(answered / max(length, 1), 1),
        "p95 chat": f"{_p95(chats[0])} ms",
        "p95 streamed": f"{_p95(chats[1])} ms",
        "steps": counted["steps"],
        "p95 step": f"{_p95(steps)} ms",
        "429": counted["429"],
        "5xx": counted["5xx"],
    }
    environment.parsed_options.report.write_text(json.dumps({"checks": checks, "figures": figures}))


def _p95(entry: Any) -> int:
    return int(entry.get_response_time_percentile(0.95) or 0)


def _check(name: str, passed: bool, why: str) -> dict[str, str]:
    return {"name": name, "outcome": "passed" if passed else "failed", "detail": "" if passed else why}


def _errors(environment: Environment) -> str:
    return "; ".join(
        f"{error.name}: {error.error} ({error.occurrences} times)" for error in environment.stats.errors.values()
    )
