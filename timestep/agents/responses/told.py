"""A step's events, folded into those of its response: the same for everyone who asks, however often."""

from timestep.agents.record.events import GAP
from timestep.agents.record.events import Event as StepEvent
from timestep.agents.responses.events import Event, Narrator, text_of
from timestep.agents.responses.items import Item
from timestep.agents.responses.request import AGENT

_TURN = "\0"  # between what a model says and what it thinks; no event has one, since PostgreSQL takes none


class StepFold:
    """Tells through ``narrator`` what a step's events say of its answer.

    A model call that is begun anew, after a crash, says its words anew: as long as they are those that were told, none
    is told twice; where they are others, the message so far is given up and another begun. What it thinks is told as
    its words are, but for an agent's, whose response has no thoughts.
    """

    def __init__(self, narrator: Narrator) -> None:
        self._narrator = narrator
        self._position: str | None = None
        self._told = self._heard = ""
        self._gap = False
        self._thinks = not str(narrator.response["model"]).startswith(AGENT)
        self._calls: dict[str, Item] = {}  # of tools that have finished before one that was asked for earlier
        self._next: dict[str, int] = {}

    def events(self, event: StepEvent) -> list[Event]:
        """What is new by this event."""
        if event.type == "step.started" and self._position is None and self._narrator.response["status"] == "queued":
            self._narrator.response = {**self._narrator.response, "status": "in_progress"}
            return [self._narrator.state()]
        # Calls of agents that serve as tools are below those of the step's own run.
        if event.position is None or event.position.count("/") != 1:
            return []
        match event.type:
            case "call.started" if event.position != self._position:
                self._position, self._told, self._heard, self._gap = event.position, "", "", False
                return self._narrator.close()
            case "call.restarted" if event.position == self._position:
                self._heard, self._gap = "", False
            case _ if event.type == GAP:
                self._gap = True
            case "output_text.delta" if not self._gap:
                return self._say(str(event.data["delta"]), thought=False)
            case "reasoning_text.delta" if self._thinks and not self._gap:
                return self._say(str(event.data["delta"]), thought=True)
        return []

    def called(self, position: str, item: Item) -> list[Event]:
        """What is new by the call of an agent's tool that has finished: calls are told in the order of their asking."""
        turn, _, _ = position.rpartition("/")
        self._calls[position] = item
        events: list[Event] = []
        while (at := f"{turn}/{self._next.setdefault(turn, 0)}") in self._calls:
            events += self._narrator.whole(self._calls.pop(at))
            self._next[turn] += 1
        return events

    def rest(self, output: list[Item]) -> list[Event]:
        """What of the whole ``output`` was not told yet."""
        told = [_said(item) for item in self._narrator.output if item["status"] == "completed"]
        left: list[Item] = []
        for item in output:
            if item["type"] in ("message", "mcp_call", "reasoning") and _said(item) in told:
                told.remove(_said(item))
            else:
                left.append(item)
        # The message that is being told comes first, since any other item would be its end.
        begun = self._begun(left)
        events = self._narrator.whole(begun) if begun else self._narrator.close("message", status="incomplete")
        for item in left:
            events += self._narrator.whole(item) if item is not begun else []
        return events + self._narrator.close(status="incomplete")  # thoughts that the output doesn't have

    def _begun(self, left: list[Item]) -> Item | None:
        """Which of the items is the message that has no end yet."""
        if (words := self._narrator.words) is None:
            return None
        return next((item for item in left if item["type"] == "message" and text_of(item).startswith(words)), None)

    def _say(self, delta: str, *, thought: bool) -> list[Event]:
        self._heard += delta if _is_thought(self._heard) == thought else _TURN + delta
        if self._told.startswith(self._heard):
            return []
        events: list[Event] = []
        if not self._heard.startswith(self._told):
            events, self._told = self._narrator.close("message", "reasoning", status="incomplete"), ""
        thought = _is_thought(self._told)
        for piece in self._heard[len(self._told) :].split(_TURN):
            if piece:
                events += self._narrator.reasoning(piece) if thought else self._narrator.text(piece)
            thought = not thought
        self._told = self._heard
        return events


def finished_tool(event: StepEvent) -> bool:
    """Whether the event is the end of a call of one of the step's own agent's tools."""
    ended = event.type == "call.finished" and event.data.get("kind") == "tool-call"
    return ended and event.position is not None and event.position.count("/") == 2


def _is_thought(said: str) -> bool:
    """Whether what ends it is a thought."""
    return said.count(_TURN) % 2 == 1


def _said(item: Item) -> tuple[object, ...]:
    """What tells one item from another, whatever their ids."""
    if item["type"] in ("message", "reasoning"):
        return (item["type"], text_of(item))
    return (item["type"], item.get("name"), item.get("arguments"))
