"""Parts of the user's own in the place of those that a configuration describes."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import optax
from flax import linen as nn

from resnet_jax.data.dataset import Dataset
from resnet_jax.errors import ResNetJaxError
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Loss


@dataclass(frozen=True)
class Custom:
    """The parts that `resnet_jax.train` takes; None leaves one to the configuration."""

    model: nn.Module | None = None
    optimizer: optax.GradientTransformation | None = None
    loss: Loss | None = None
    data: Dataset | None = None
    tag: str | None = None

    def describe(
        self,
        shapes: Callable[[], TrainState],
        images: jax.Array,
        num_classes: int,
    ) -> dict[str, str]:
        """Return what a run's folder records of the parts, to compare when the run goes on.

        Qualified names, and digests of the shapes of parameters and of the optimiser's state, at
        step 0. What is inside of a function (a rate, a constant) is seen by none of them. A network
        that does not give a logit for each class is refused.
        """
        named = {
            "model": self.model and type(self.model),
            "optimizer": self.optimizer and self.optimizer.update,
            "loss": self.loss,
        }
        found = {name: _qualified(part) for name, part in named.items() if part is not None}
        if self.tag is not None:
            found["tag"] = self.tag
        if self.model or self.optimizer:
            state = shapes()
            found["parameters"] = _digest(state.params)
            found["optimizer state"] = _digest(state.opt_state)
        if self.model:
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            logits = jax.eval_shape(partial(self.model.apply, train=False), variables, images)
            if getattr(logits, "shape", None) != (1, num_classes):
                raise ResNetJaxError(
                    f"model returns {logits}: expected logits of shape {(1, num_classes)}, one for "
                    f"each of {num_classes} classes"
                )
        return found


def _qualified(part: Any) -> str:
    part = getattr(part, "func", part)  # of a `functools.partial`
    part = part if hasattr(part, "__qualname__") else type(part)
    return f"{part.__module__}.{part.__qualname__}"


def _digest(tree: Any) -> str:
    text = "".join(
        f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}\n"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
