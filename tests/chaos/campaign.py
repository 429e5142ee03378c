"""A campaign: steps run while parts of the service are killed at random points, then everything is counted.

What counts as repeated is decided by the record: a call that began again after its unit had been finished. A call
that was cut in the middle has no finished unit; it may begin again and is counted apart.
"""

import asyncio
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import httpx
from prefect.exceptions import PrefectHTTPStatusError

from tests.chaos.learning import Learnt
from tests.chaos.stack import Stack
from timestep import runs
from timestep.errors import TimestepError

# What is killed, and how often relative to the others.
TARGETS = {"flow run": 5, "worker": 3, "worker and flow runs": 2, "prefect-server": 3, "postgres": 3, "stack": 2}
STOPS = 10  # after every so many kills a flow run's process is stopped, and goes on once another took over
AGENTS = ("chaotic", "chaotic", "careful")  # in turn
AT_WORK = 4  # steps that are under way at any time
THINKING = 3  # seconds until the person who approves does so
ONCE = ("chaotic/2/0", "careful/1/0", "careful/1/1")  # calls that must not run again by themselves
PATIENCE = 240.0  # seconds after the last kill until a step that hasn't ended is lost


@dataclass
class Kill:
    """One kill: what, when (seconds since the epoch), and the steps whose processes died by it."""

    target: str
    at: float
    cut: list[str]
    resumed: list[float] = field(default_factory=list)


@dataclass
class Counts:
    """What a campaign showed."""

    kills: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    lost: list[str] = field(default_factory=list)
    model_calls: int = 0
    tool_calls: int = 0
    model_calls_repeated: int = 0
    tool_calls_repeated: int = 0
    cut_run_again: int = 0
    once_run_again: int = 0
    asked: int = 0
    approved: int = 0
    stopped: int = 0
    unfenced: int = 0
    states_unfenced: int = 0
    completions: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    learnt: Learnt | None = None

    @property
    def bad(self) -> list[str]:
        """What must not be, a line each."""
        none = {
            "completed model calls repeated": self.model_calls_repeated,
            "completed tool calls repeated": self.tool_calls_repeated,
            "calls run again without a person": self.once_run_again,
            "calls begun by superseded processes": self.unfenced,
            "states set by superseded processes": self.states_unfenced,
        }
        found = [f"{count} {what}" for what, count in none.items() if count]
        return [*self.lost, *found, *([] if self.learnt is None else self.learnt.bad)]

    def table(self) -> str:
        """Markdown."""
        total = sum(self.kills.values())
        kinds = ", ".join(f"{count} {name}" for name, count in self.kills.most_common())
        every = [second for seconds in self.seconds.values() for second in seconds]
        rows = [
            ("kill -9", f"{total} ({kinds})"),
            ("steps run", f"{self.steps} ({self.model_calls} model calls, {self.tool_calls} tool calls)"),
            ("steps lost", str(len(self.lost))),
            ("completed model calls repeated", str(self.model_calls_repeated)),
            ("completed tool calls repeated", str(self.tool_calls_repeated)),
            ("calls cut in the middle that ran again", str(self.cut_run_again)),
            ("…of which `once` or approved, without a person", str(self.once_run_again)),
            ("`once` or approved calls cut, a person asked", str(self.asked)),
            ("calls approved by a person", str(self.approved)),
            ("processes stopped, superseded, continued", str(self.stopped)),
            ("…calls that those still began", str(self.unfenced)),
            ("…states that those still set in Prefect", str(self.states_unfenced)),
            ("kill to resumed, median", f"{statistics.median(every):.1f} s of {len(every)}" if every else "none"),
        ]
        rows += [
            (f"…after a kill of {name}", f"{statistics.median(seconds):.1f} s of {len(seconds)}")
            for name, seconds in sorted(self.seconds.items())
        ]
        rows += [] if self.learnt is None else self.learnt.rows()
        return "\n".join(["| fault injection | |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)])


class Campaign:
    """Kills of a seeded kind at seeded moments, on a stack that is brought back when it is gone as a whole."""

    def __init__(self, stack: Stack, kills: int, seed: int) -> None:
        self.stack, self.planned = stack, kills
        self.random = random.Random(seed)
        self.kills: list[Kill] = []
        self.steps: dict[str, str] = {}  # id -> tag
        self.ended: dict[str, str] = {}  # id -> its final state
        self.settled: Counter[str] = Counter()
        self.stopped: dict[int, float] = {}  # process id -> when it was stopped
        self.over = asyncio.Event()

    async def run(self) -> Counts:
        """Kill, let everything come to its end, count."""
        feeding = asyncio.create_task(self._feed())
        await self._stop_one()
        await self._kill()
        self.over.set()
        await self.stack.up()
        with suppress(TimeoutError):
            await asyncio.wait_for(feeding, PATIENCE)
        return await self._count()

    async def _kill(self) -> None:
        for number in range(1, self.planned + 1):
            (target,) = self.random.choices(list(TARGETS), list(TARGETS.values()))
            before = await self._at_work()
            doomed: list[int] = []
            if "flow run" in target and before:
                doomed = list(before.values()) if target.endswith("s") else [self.random.choice(list(before.values()))]
            at = time.time()
            if target != "flow run":
                self.stack.kill(target.removesuffix(" and flow runs"))
            for pid in doomed:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.3)
            after = await self.stack.holders() if target != "postgres" else before
            self.kills.append(Kill(target, at, [step for step in before if step not in after]))
            print(f"  {len(self.kills):>3} {target}, {len(self.kills[-1].cut)} steps cut", flush=True)
            if target == "stack":
                await asyncio.sleep(1)
                await self.stack.up()
            if number % STOPS == 0:
                await self._stop_one()

    async def _stop_one(self) -> None:
        """SIGSTOP a flow run's process, let another take its step over, and let the first go on."""
        step, pid = self.random.choice(list((await self._at_work()).items()))
        self.stopped[pid] = time.time()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        print(f"      process {pid} stopped", flush=True)
        try:
            async with asyncio.timeout(PATIENCE):
                while (await self.stack.holders()).get(step, pid) == pid and step not in self.ended:
                    await asyncio.sleep(0.5)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _at_work(self) -> dict[str, int]:
        """Steps at work and their processes, at a random moment: a kill while there are none would show nothing."""
        async with asyncio.timeout(PATIENCE):
            while True:
                await asyncio.sleep(self.random.uniform(0.3, 4))
                if held := await self.stack.holders():
                    return held

    async def _feed(self) -> None:
        """Keep steps under way until the kills are over, then until the last of them has ended."""
        number = 0
        while not self.over.is_set() or len(self.ended) < len(self.steps):
            with suppress(TimestepError, httpx.HTTPError, PrefectHTTPStatusError, AssertionError, OSError):
                async with runs.connect(self.stack.settings.prefect_api) as client:
                    while not self.over.is_set() or len(self.ended) < len(self.steps):
                        if not self.over.is_set() and len(self.steps) - len(self.ended) < AT_WORK:
                            # The key makes a start whose answer was lost the same step when it is sent again.
                            agent = AGENTS[number % len(AGENTS)]
                            parameters = {"input": f"step-{number}", "agent": agent}
                            run = await runs.start(client, "step/step", parameters, idempotency_key=f"chaos-{number}")
                            self.steps[str(run.id)] = f"step-{number}"
                            number += 1
                        for step in set(self.steps) - set(self.ended):
                            state = (await client.read_flow_run(UUID(step))).state
                            if state is not None and state.is_final() and not state.is_crashed():
                                self.ended[step] = f"{state.name}: {state.message}"
                        await self._settle()
                        await asyncio.sleep(0.3)
            await asyncio.sleep(0.5)

    async def _settle(self) -> None:
        """Be the person who approves, after a while, and says what came of a call that was cut."""
        query = "select step_id, position, kind, extract(epoch from now() - created_at) as age from approvals"
        for row in await self.stack.fetch(f"{query} where status = 'pending'"):
            if row["age"] < THINKING:
                continue
            verdict = "approve" if row["kind"] == "approval" else "result"
            body = {"decisions": [{"call": row["position"], "verdict": verdict, "text": "a person says so"}]}
            url = f"http://127.0.0.1:{self.stack.settings.port}/v1/steps/{row['step_id']}/approvals"
            async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
                answer = await client.post(url, json=body)
            self.settled[row["kind"]] += answer.is_success

    async def _count(self) -> Counts:
        counts = Counts(Counter(kill.target for kill in self.kills), steps=len(self.steps))
        counts.asked, counts.approved = self.settled["cut"], self.settled["approval"]
        counts.stopped = len(self.stopped)
        ends = {step: self.ended.get(step, "Never ended") for step in self.steps}
        counts.lost = [f"{step} {end}" for step, end in ends.items() if not end.startswith("Completed")]
        rows = await self.stack.fetch("select step_id, position, kind, finished_at from units")
        finished = {(row["step_id"], row["position"]): row["finished_at"] for row in rows}
        counts.model_calls = sum(row["kind"] == "model-call" for row in rows if row["step_id"] in self.steps)
        counts.tool_calls = sum(row["kind"] == "tool-call" for row in rows if row["step_id"] in self.steps)
        begun: dict[tuple[str, str], list[float]] = {}
        for text in self.stack.calls.read_text().splitlines():
            line = json.loads(text)
            unfenced = line["at"] > self.stopped.get(line["pid"], float("inf"))
            if line["moment"] == "begun":
                begun.setdefault((line["tag"], line["call"]), []).append(line["at"])
                counts.unfenced += unfenced
            elif line["moment"] == "state" and line["tag"] in self.steps:
                counts.states_unfenced += unfenced
                counts.completions += line["call"] == "COMPLETED"
        for step, tag in self.steps.items():
            for call in (call for of, call in begun if of == tag):
                times, end = begun[tag, call], finished.get((step, call))
                again = sum(end is not None and at > end.timestamp() for at in times)
                if call.count("/") == 1:
                    counts.model_calls_repeated += again
                else:
                    counts.tool_calls_repeated += again
                counts.cut_run_again += len(times) - 1 - again
                counts.once_run_again += len(times) - 1 if call in ONCE else 0
        await self._measure(counts)
        return counts

    async def _measure(self, counts: Counts) -> None:
        rows = await self.stack.fetch("select step_id, created_at from events where type = 'step.started' order by id")
        for kill in self.kills:
            for step in kill.cut:
                starts = [row["created_at"].timestamp() for row in rows if row["step_id"] == step]
                later = [start for start in starts if start > kill.at]
                if later:
                    counts.seconds.setdefault(kill.target, []).append(later[0] - kill.at)
