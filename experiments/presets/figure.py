"""What does a run of `quickstart` look like? The picture that the README shows.

Command:   python -m experiments.presets.figure RUN OUTPUT.png
Result:    docs/images/quickstart.png: curves, and what the network makes of some test digits
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tyro.conf import Positional

import resnet_jax as rj
from experiments.measuring import command
from experiments.plotting import BLUE, ORANGE, logarithmic


def main(run: Positional[Path], output: Positional[Path]) -> None:
    """Draw a run into a file."""
    opened = rj.Run.open(run)
    metrics = opened.metrics().assign(wrong=lambda rows: 100 * (1 - rows.accuracy))
    figure = Figure((10, 5.2), layout="constrained")
    curves, digits = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    upper, lower = curves.subplots(2, 1, sharex=True)
    labels = {"loss": "cross-entropy, nats", "wrong": "wrong, %"}
    for axes, (name, label) in zip((upper, lower), labels.items(), strict=True):
        for kind, colour, marker in (("train", ORANGE, ""), ("validation", BLUE, "o")):
            rows = metrics[metrics.kind == kind]
            style = {"color": colour, "marker": marker, "ms": 3, "lw": 1.5}
            axes.plot(rows.epoch, rows[name], **style, label=kind)
        logarithmic(axes.yaxis, subs=(1, 2, 5))
        axes.grid(alpha=0.3, which="both", lw=0.5)
        axes.set_ylabel(label)
    upper.set_title("training: augmented images, smoothed labels", fontsize=10)
    upper.legend(frameon=False)
    lower.set_xlabel("epoch")

    data = rj.load_dataset(opened.config.data.name, opened.config.data.dir)
    p = opened.predict(data.test.images, "latest")
    right = p.argmax(1) == data.test.labels
    doubtful = np.argsort(p[np.arange(len(p)), data.test.labels])[:10]
    sure = [int(np.flatnonzero(right & (data.test.labels == k))[0]) for k in range(10)]
    axes = digits.subplots(4, 5)
    digits.suptitle("test digits: one of each, and the ten most doubtful", fontsize=10)
    for ax, index in zip(axes.flat, [*sure, *doubtful], strict=True):
        ax.imshow(data.test.images[index, :, :, 0], cmap="gray_r")
        label, guess = int(data.test.labels[index]), int(p[index].argmax())
        text = f"{guess}: {p[index, guess]:.0%}" + ("" if guess == label else f", is {label}")
        ax.set_title(text, fontsize=9, color="black" if guess == label else ORANGE)
        ax.set_axis_off()
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    command(main)
