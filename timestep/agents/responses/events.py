"""What a model says, told as the stream events of the Responses API: equal words in equal pieces, equal events."""

from typing import Any

from timestep.agents.responses.items import Item

Event = dict[str, Any]

_PREFIXES = {"message": "msg", "function_call": "fc", "mcp_call": "mcp", "reasoning": "rs"}


def item_id(kind: str, response_id: str, index: int) -> str:
    """Id of a response's output item: the same, whoever tells of it."""
    return f"{_PREFIXES.get(kind, 'item')}_{response_id.removeprefix('resp_')}{index:04x}"


def text_of(item: Item) -> str:
    """The words of a message, but for a refusal's, or of reasoning."""
    return "".join(part.get("text", "") for part in item.get("content") or ())


class Narrator:
    """Tells of one response. ``output`` is what was told so far; each method gives the events of what is new."""

    def __init__(self, response: dict[str, Any]) -> None:
        self.response = response
        self.output: list[Item] = []
        self._number = 0
        self._open: dict[str, int] = {}  # of a message, of reasoning, and of calls by their index in the chat's turn

    @property
    def words(self) -> str | None:
        """What was told of the message that has no end yet; None where there is none."""
        return text_of(self.output[self._open["message"]]) if "message" in self._open else None

    def state(self, status: str | None = None) -> Event:
        """That the response is created, or in progress, or has come to its end."""
        name = status or self.response["status"]
        name = "failed" if name == "cancelled" else name  # the API has no event of its own for it
        return self._event(f"response.{name}", response=self.response)

    def text(self, delta: str, logprobs: list[Any] | None = None) -> list[Event]:
        """More of the message."""
        return self._say("output_text", delta, logprobs or [])

    def refusal(self, delta: str) -> list[Event]:
        """More of why the model won't."""
        return self._say("refusal", delta, [])

    def reasoning(self, delta: str) -> list[Event]:
        """More of what the model thinks before it says anything."""
        events = []
        if "reasoning" not in self._open:
            events = self._begin("reasoning", "reasoning", {"summary": [], "content": []})
            self.output[-1]["content"] = [{"type": "reasoning_text", "text": ""}]
        index = self._open["reasoning"]
        self.output[index]["content"][0]["text"] += delta
        return [*events, self._of(index, "response.reasoning_text.delta", content_index=0, delta=delta)]

    def call(self, key: str, call_id: str, name: str, delta: str) -> list[Event]:
        """More of a call's arguments; ``key`` says which call of the turn it is."""
        events = []
        if key not in self._open:
            events = self.close("message", "reasoning")
            events += self._begin(key, "function_call", {"call_id": call_id, "name": name, "arguments": ""})
        index = self._open[key]
        self.output[index]["arguments"] += delta
        if delta:
            events.append(self._of(index, "response.function_call_arguments.delta", delta=delta))
        return events

    def whole(self, item: Item) -> list[Event]:
        """An item that is known from beginning to end; a message's beginning may have been told, or reasoning's."""
        match item["type"]:
            case "message":
                return self._message(item)
            case "function_call":
                key = item["call_id"]
                events = self.call(key, key, item["name"], item["arguments"])
                return events + self._done(key, item["status"], item.get("incomplete_details"))
            case "mcp_call":
                return self._mcp(item)
            case "reasoning" if "reasoning" in self._open:
                return self._reasoned(item)
        return [*self.close(), *self._bare(item)]

    def close(self, *keys: str, status: str = "completed") -> list[Event]:
        """The end of the open items: those of the keys, or all."""
        chosen = [key for key in self._open if not keys or key in keys]
        return [event for key in chosen for event in self._done(key, status)]

    def cut(self, why: str | None = None) -> list[Event]:
        """The end of the turn before its time: its last item is incomplete. ``why``, if not by the limit of tokens."""
        events: list[Event] = []
        if not self._open:
            events = self._begin("message", "message", {"role": "assistant", "content": []})
        *before, last = sorted(self._open, key=lambda key: self._open[key])
        events += self.close(*before) if before else []
        return events + self._done(last, "incomplete", None if why is None else {"reason": why})

    def _say(self, kind: str, delta: str, logprobs: list[Any]) -> list[Event]:
        events = []
        if "message" not in self._open:
            events = self.close("reasoning")
            events += self._begin("message", "message", {"role": "assistant", "content": []})
        index = self._open["message"]
        content = self.output[index]["content"]
        if not content or content[-1]["type"] != kind:
            events += self._part_done(index) if content else []
            content.append(_part(kind))
            place = {"content_index": len(content) - 1, "part": _part(kind)}
            events.append(self._of(index, "response.content_part.added", **place))
        place = {"content_index": len(content) - 1, "delta": delta}
        if kind == "refusal":
            content[-1]["refusal"] += delta
            return [*events, self._of(index, "response.refusal.delta", **place)]
        content[-1]["text"] += delta
        content[-1]["logprobs"] += logprobs
        return [*events, self._of(index, "response.output_text.delta", logprobs=logprobs, **place)]

    def _message(self, item: Item) -> list[Event]:
        """What of the message was not told yet; where other words were, those are given up."""
        events: list[Event] = []
        words, before = text_of(item), self.words or ""
        if before and not words.startswith(before):
            events, before = self.close("message", status="incomplete"), ""
        for part in item["content"]:
            if part["type"] == "refusal":
                events += self.refusal(part["refusal"])
            elif len(part["text"]) > len(before):
                events += self.text(part["text"][len(before) :], part.get("logprobs"))
        if "message" not in self._open:
            events += self._begin("message", "message", {"role": "assistant", "content": []})
        return events + self._done("message", item["status"], item.get("incomplete_details"))

    def _reasoned(self, item: Item) -> list[Event]:
        """What of the open reasoning was not told yet; where it was another, that is given up."""
        text, before = text_of(item), text_of(self.output[self._open["reasoning"]])
        if not text.startswith(before):
            return [*self.close("reasoning", status="incomplete"), *self.whole(item)]
        events = self.reasoning(text[len(before) :]) if len(text) > len(before) else []
        return events + self._done("reasoning", item["status"], item.get("incomplete_details"))

    def _mcp(self, item: Item) -> list[Event]:
        events = self.close()
        known = {name: item.get(name) for name in ("name", "server_label")}
        events += self._begin(item["id"], "mcp_call", {**known, "arguments": "", "output": None, "error": None})
        index = self._open.pop(item["id"])
        events.append(self._of(index, "response.mcp_call.in_progress"))
        events.append(self._of(index, "response.mcp_call_arguments.delta", delta=item["arguments"]))
        events.append(self._of(index, "response.mcp_call_arguments.done", arguments=item["arguments"]))
        self.output[index] |= {"arguments": item["arguments"], "output": item.get("output"), "status": "completed"}
        events.append(self._of(index, "response.mcp_call.completed"))
        return [*events, self._event("response.output_item.done", output_index=index, item=_copy(self.output[index]))]

    def _bare(self, item: Item) -> list[Event]:
        self.output.append({**item, "id": item_id(item["type"], self.response["id"], len(self.output))})
        place = {"output_index": len(self.output) - 1, "item": _copy(self.output[-1])}
        return [self._event(f"response.output_item.{what}", **place) for what in ("added", "done")]

    def _begin(self, key: str, kind: str, fields: dict[str, Any]) -> list[Event]:
        index = len(self.output)
        id = item_id(kind, self.response["id"], index)
        self.output.append({"id": id, "type": kind, "status": "in_progress", **fields})
        self._open[key] = index
        return [self._event("response.output_item.added", output_index=index, item=_copy(self.output[index]))]

    def _done(self, key: str, status: str, why: Item | None = None) -> list[Event]:
        index = self._open.pop(key)
        item = self.output[index]
        item["status"] = status
        if why is not None:  # of the response, which is made of its items alone
            item["incomplete_details"] = why
        events = []
        if item["type"] == "message" and item["content"]:
            events = self._part_done(index)
        elif item["type"] == "reasoning":
            text = item["content"][0]["text"]
            events = [self._of(index, "response.reasoning_text.done", content_index=0, text=text)]
        elif item["type"] == "function_call":
            said = {"arguments": item["arguments"], "name": item["name"]}
            events = [self._of(index, "response.function_call_arguments.done", **said)]
        return [*events, self._event("response.output_item.done", output_index=index, item=_copy(item))]

    def _part_done(self, index: int) -> list[Event]:
        content = self.output[index]["content"]
        part, place = content[-1], {"content_index": len(content) - 1}
        if part["type"] == "refusal":
            said = self._of(index, "response.refusal.done", refusal=part["refusal"], **place)
        else:
            logprobs = list(part["logprobs"])
            said = self._of(index, "response.output_text.done", text=part["text"], logprobs=logprobs, **place)
        return [said, self._of(index, "response.content_part.done", part=_copy(part), **place)]

    def _of(self, index: int, type: str, **fields: Any) -> Event:
        return self._event(type, item_id=self.output[index]["id"], output_index=index, **fields)

    def _event(self, type: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": type, "sequence_number": self._number - 1, **fields}


def _part(kind: str) -> Item:
    """A part of a message before any word of it; one of its own each time, since it goes on changing."""
    empty = {"text": "", "annotations": [], "logprobs": []} if kind == "output_text" else {"refusal": ""}
    return {"type": kind, **empty}


def _copy(item: Item) -> Item:
    """As it is now: it goes on changing."""
    content = item.get("content")
    return {**item, "content": [dict(part) for part in content]} if isinstance(content, list) else dict(item)
