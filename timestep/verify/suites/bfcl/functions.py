"""Berkeley function calling: its data and its checker of calls, against a model over chat completions.

How good the model is, is measured and not judged: a case is a check only of whether it was answered in the right shape.
The checker asks bfcl's list of models for one flag only, and the list imports the client of every provider: ours has
one entry.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from openai import APIStatusError, OpenAI, OpenAIError

MODEL = "timestep"
models = ModuleType("bfcl_eval.constants.model_config")
models.MODEL_CONFIG_MAPPING = {MODEL: SimpleNamespace(underscore_to_dot=True)}  # type: ignore[attr-defined]
sys.modules[models.__name__] = models

from bfcl_eval.constants.enums import Language, ModelStyle  # noqa: E402
from bfcl_eval.constants.type_mappings import GORILLA_TO_OPENAPI  # noqa: E402
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # noqa: E402
from bfcl_eval.model_handler.utils import convert_to_tool  # noqa: E402
from bfcl_eval.utils import load_dataset_entry, load_ground_truth_entry  # noqa: E402

CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
LONGEST = 512  # tokens of an answer: a small model may not stop by itself


@dataclass(frozen=True)
class Case:
    """A question with its tools; ``answers`` None: no tool fits, and none may be called."""

    category: str
    entry: dict[str, Any]
    answers: list[Any] | None

    @property
    def tools(self) -> list[dict[str, Any]]:
        return list(convert_to_tool(self.entry["function"], GORILLA_TO_OPENAPI, ModelStyle.OPENAI_COMPLETIONS))

    def right(self, calls: list[dict[str, Any]]) -> bool:
        """Whether these calls, name to arguments, are what the case asks for."""
        if self.answers is None:
            return not calls
        if not calls:
            return False
        asked = (self.entry["function"], calls, self.answers, Language.PYTHON, self.category, MODEL)
        return bool(ast_checker(*asked)["valid"])


@dataclass(frozen=True)
class Answer:
    """What came of a case: ``problem`` is why it wasn't answered in the right shape; ``refused``: it was, by a 4xx."""

    case: Case
    right: bool = False
    called: bool = False
    refused: bool = False
    problem: str = ""


def cases(limit: int | None) -> list[Case]:
    """The first ``limit`` cases, as many of each category as of the others."""
    columns = [list(_category(name)) for name in CATEGORIES]
    mixed = [case for case in chain.from_iterable(zip_longest(*columns)) if case is not None]
    return mixed[:limit]


def _category(name: str) -> Iterator[Case]:
    truths = {} if name == "irrelevance" else {one["id"]: one["ground_truth"] for one in load_ground_truth_entry(name)}
    for entry in load_dataset_entry(name):
        yield Case(name, entry, truths.get(entry["id"]))


def ask(client: OpenAI, model: str, case: Case) -> Answer:
    """Put the case to the model."""
    question = case.entry["question"][0]
    try:
        answer = client.chat.completions.create(
            model=model, messages=question, tools=case.tools, temperature=0, max_tokens=LONGEST
        )
    except APIStatusError as error:
        if error.status_code < 500:
            return Answer(case, refused=True)
        return Answer(case, problem=str(error))
    except OpenAIError as error:
        return Answer(case, problem=str(error))
    choice = answer.choices[0]
    names = {tool["function"]["name"] for tool in case.tools}
    calls: list[dict[str, Any]] = []
    for call in choice.message.tool_calls or ():
        if call.function.name not in names:
            return Answer(case, problem=f"calls '{call.function.name}', which it wasn't given")
        try:
            calls.append({call.function.name: json.loads(call.function.arguments)})
        except ValueError:
            if choice.finish_reason == "length":
                break
            return Answer(case, problem=f"arguments that are no JSON: {call.function.arguments[:80]}")
    return Answer(case, case.right(calls), bool(calls))


def report(answers: list[Answer]) -> dict[str, Any]:
    """Checks by category, and the figures."""
    checks, figures = [], {}
    total = [answer for answer in answers if not answer.problem]
    figures["accuracy"] = _share(total)
    for name in CATEGORIES:
        own = [answer for answer in answers if answer.case.category == name]
        problems = [f"{one.case.entry['id']}: {one.problem}" for one in own if one.problem]
        outcome = "failed" if problems else "passed" if own else "skipped"
        checks.append({"name": f"{name}: answered", "outcome": outcome, "detail": "; ".join(problems)[:600]})
        if own:
            figures[name] = _share(own)
    wanted = [answer for answer in answers if answer.case.answers is not None]
    figures["called where asked"] = f"{sum(one.called for one in wanted)}/{len(wanted)}"
    figures["refused"] = sum(one.refused for one in answers)
    return {"checks": checks, "figures": figures}


def _share(answers: list[Answer]) -> str:
    return f"{sum(answer.right for answer in answers)}/{len(answers)}"


def main() -> None:
    """``python functions.py --model M --report FILE [--limit N]``"""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--report", type=Path, required=True)
    arguments = parser.parse_args()
    with OpenAI(timeout=600, max_retries=3) as client, ThreadPoolExecutor(4) as pool:
        asked = pool.map(lambda case: ask(client, arguments.model, case), cases(arguments.limit))
        arguments.report.write_text(json.dumps(report(list(asked))))


if __name__ == "__main__":
    main()
