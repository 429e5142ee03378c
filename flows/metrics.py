"""The metrics of a fine-tuning job as a file that its client can fetch, in the columns of OpenAI's."""

import csv
import io
import uuid
from typing import Any

from flows.support import Services
from timestep.agents.record.ledger import Begin, Ledger
from timestep.files import Files
from training.learn import Learned

POSITION, PURPOSE = "training/metrics", "fine-tune-results"
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


async def keep_metrics(ledger: Ledger, learned: Learned, services: Services) -> None:
    """Store the file, once; its id is the result of a unit, and follows from the step's."""
    if await ledger.begin(Begin(POSITION, "training", "metrics", "")) is None:
        stored = await Files(services.database, services.store).create(
            _csv(learned).encode(), "step_metrics.csv", PURPOSE, file_id=_file_id(ledger.step_id)
        )
        await ledger.finish(POSITION, stored.id)


def _file_id(step_id: str) -> str:
    return f"file-{uuid.uuid5(uuid.NAMESPACE_OID, f'{step_id}/{POSITION}').hex}"


def _csv(learned: Learned) -> str:
    """A row for each point of the loss curve; the accuracy of an epoch stands at its end."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for epoch in learned.epochs:
        windows = learned.prepared.window_count
        for passed, loss in epoch.result.curve:
            last: list[Any] = [round(epoch.result.accuracy, 5)] if passed == epoch.result.curve[-1][0] else [""]
            rows.writerow([round(passed * windows), loss, *last, "", ""])
    return text.getvalue()
