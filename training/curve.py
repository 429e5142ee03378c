"""The loss curve of a training run as a picture, for the Prefect UI."""

import io
from collections.abc import Sequence

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


def loss_curve_svg(points: Sequence[tuple[float, float]], title: str = "Training loss") -> bytes:
    """SVG of ``points``: (epochs passed, loss in nats per token); an empty list gives empty axes."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss (nats per token)", title=title)
    axes.plot([epoch for epoch, _ in points], [loss for _, loss in points], color="#2f6fde", linewidth=1.6)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()
