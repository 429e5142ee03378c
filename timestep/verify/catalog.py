"""The suites by name, in the order in which they run."""

from timestep.errors import NotFoundError
from timestep.verify.document import SchemathesisSuite
from timestep.verify.measures import BerkeleySuite, LocustSuite
from timestep.verify.programs import NodeSuite, PytestSuite, Suite

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        PytestSuite("openai-python", "the official Python client over every endpoint", "openai_python"),
        NodeSuite("openai-js", "the official JavaScript client over every endpoint", "openai_js"),
        PytestSuite("langchain", "LangChain's standard tests of chat and embedding models", "langchain"),
        SchemathesisSuite("schemathesis", "the service's own OpenAPI document, held to its word"),
        BerkeleySuite("bfcl", "Berkeley function calling, a measure of the model"),
        LocustSuite("locust", "50 clients that chat and 20 steps in the background"),
    )
}


def chosen(names: list[str]) -> list[Suite]:
    """The suites of these names, all where there are none. NotFoundError: no such suite."""
    for name in names:
        if name not in SUITES:
            raise NotFoundError("suite", name, list(SUITES))
    return [suite for suite in SUITES.values() if not names or suite.name in names]
