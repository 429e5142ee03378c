"""Two ControlFlow agents that hand one task to each other: one looks prices up, the other writes the offer."""

import controlflow

PRICES = {"desk": 240, "chair": 95, "lamp": 30}  # euros


def price(item: str, count: int) -> int:
    """Price of so many of an item, in euros. Items: desk, chair, lamp."""
    return PRICES[item] * count


estimator = controlflow.Agent(
    name="estimator",
    description="Knows the prices.",
    instructions="Look every price up with the tool, add them up, and delegate to the writer with the total.",
    tools=[price],
)
writer = controlflow.Agent(
    name="writer",
    description="Writes offers.",
    instructions="Write the offer in one sentence that names the total, and mark the task as successful with it. "
    "Delegate to the estimator for a price you don't know.",
)
offer = controlflow.Task(
    name="offer",
    objective="Write an offer for what the customer asks for; the context has the customer's words.",
    agents=[estimator, writer],
)
