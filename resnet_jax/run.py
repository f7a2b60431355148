"""Training runs: train one, and open one for its metrics, weights and predictions."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import jax
import numpy as np
import optax
from flax import linen as nn
from numpy.typing import ArrayLike

from resnet_jax.config import TrainConfig, replaced
from resnet_jax.data.dataset import Dataset, Split
from resnet_jax.data.load import load_splits
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.display import Display
from resnet_jax.errors import ResNetJaxError, out_of_memory
from resnet_jax.interop.network import Network, export_stablehlo
from resnet_jax.interop.onnx import export_onnx
from resnet_jax.interop.weights import export_torchvision
from resnet_jax.models import BatchNorm, has_parameters, make_model
from resnet_jax.storage import PathLike, VerifyReport, check_replaceable, expanded, refuse_links
from resnet_jax.training.callbacks import Callback
from resnet_jax.training.distributed import is_main_process
from resnet_jax.training.engine import Engine
from resnet_jax.training.jax_settings import configured_jax, find_devices
from resnet_jax.training.loop import ShouldStop, Training
from resnet_jax.training.metrics import COMMON, Evaluation
from resnet_jax.training.run_folder import RunFolder
from resnet_jax.training.setup import Custom
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Loss

if TYPE_CHECKING:
    import pandas as pd

Checkpoint = Literal["best", "latest"]
Format = Literal["torchvision", "stablehlo", "onnx"]
UNREADABLE = "no readable metrics"
EXPORTS = {  # the writer of each format, and the file's ending
    "torchvision": (export_torchvision, ".safetensors"),
    "stablehlo": (export_stablehlo, ".stablehlo"),
    "onnx": (export_onnx, ".onnx"),
}


def train(
    config: TrainConfig,
    run_dir: PathLike,
    *,
    quiet: bool = False,
    should_stop: ShouldStop | None = None,
    callbacks: Sequence[Callback] = (),
    model: nn.Module | None = None,
    optimizer: optax.GradientTransformation | None = None,
    loss: Loss | None = None,
    data: Dataset | None = None,
    tag: str | None = None,
) -> "Run":
    """Train a run to its end, resuming it if ``run_dir`` already holds it; make no report.

    >>> import dataclasses, resnet_jax as rj
    >>> config = dataclasses.replace(rj.PRESETS["quickstart"], epochs=1)
    >>> run = rj.train(config, "runs/one-epoch")  # doctest: +SKIP

    Args:
        config: every setting.
        run_dir: the run's folder, made if it is missing.
        quiet: show no progress.
        should_stop: called after every step; a short reason stops the run, None lets it go on.
        callbacks: follow the run, see `Callback`.
        model: a Linen module in place of ``config.model``; called with ``(images, *, train)``, it
            returns logits. It may have ``batch_stats``, and draw random numbers in training.
        optimizer: an optax transformation in place of ``config.optim``; it may take the loss as
            the extra argument ``value``, but no other.
        loss: maps ``(logits, targets)`` to the training loss of each example, or the mean; it gets
            no label smoothing. Targets: int32[N], or with mixup or cutmix soft labels, float[N, K].
        data: a dataset in place of the one in ``config.data``, whose other settings apply.
        tag: a word that identifies what the names and shapes of these parts do not show, such as a
            rate inside a function. A run resumes only with parts of equal names, shapes and tag.

    Raises:
        ResNetJaxError: the configuration is refused, the data cannot be loaded, the run's folder is
            another run's, is in use or cannot be written, or the loss or the gradient was not
            finite; the last checkpoint stays. With ``exit_code`` 75: `should_stop` gave a reason;
            the step is saved and the same call continues.
    """
    if not isinstance(config, TrainConfig):
        raise ResNetJaxError(f"config is {config!r:.60}: give a TrainConfig, as rj.PRESETS[NAME]")
    custom = Custom(model, optimizer, loss, data, tag)
    with ExitStack() as stack:
        if not quiet and is_main_process():
            momentum = BatchNorm.momentum if model is None and not config.init_from else 0.0
            display = Display(momentum=momentum**config.accumulate)
            stack.enter_context(display.bar)
            callbacks = (display, *callbacks)
        stack.enter_context(configured_jax(config))
        try:
            Training(config, expanded(run_dir), callbacks, custom, stack).fit(should_stop)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            raise ResNetJaxError(
                f"--batch-size {config.batch_size} does not fit in the device's memory: give a "
                f"smaller one, --accumulate 2, --model.remat or --model.dtype bfloat16"
            ) from error
    return Run.open(expanded(run_dir), model=model, data=data)


class Run:
    """A run's folder, opened for reading.

    ``"best"`` parameters are those of the best validation accuracy (without validation images the
    newest), ``"latest"`` those of the newest checkpoint; both are averages if the run keeps them.
    They are read once: reopen a run that is still training to see newer ones.

    >>> run = rj.Run.open("runs/quickstart-seed0")  # doctest: +SKIP
    >>> run.evaluate("test").accuracy  # doctest: +SKIP
    0.982

    Attributes:
        path: the folder.
        config: the run's settings.
        class_names: K names.
        image_shape: ``(H, W, C)`` of images as read, before ``--data.image-size`` applies.
        fingerprint: SHA-256 of the data it was trained on, see `Dataset`.
        parts: what is recorded of the user's own network, optimiser and loss, see `train`.
        made_by: the commit and the package versions that the run began with.
    """

    def __init__(
        self, run_dir: PathLike, model: nn.Module | None = None, data: Dataset | None = None
    ) -> None:
        self._own = Custom(model, data=data)  # refuses values of other types
        self._folder = folder = RunFolder(expanded(run_dir).absolute())
        self._record = record = folder.read_record()
        self.path, self.config, self.fingerprint = folder.path, record.config, record.fingerprint
        self.class_names, self.image_shape = record.class_names, record.image_shape
        self.parts, self.made_by = dict(record.parts), record.made_by
        self._states: dict[Checkpoint, TrainState] = {}

    @classmethod
    def open(
        cls, run_dir: PathLike, *, model: nn.Module | None = None, data: Dataset | None = None
    ) -> Self:
        """Open a run.

        Args:
            run_dir: the run's folder.
            model: the network that the run trained, if it is not one of the package's.
            data: the run's dataset, if it was the user's own; for `split` and `evaluate`.

        Raises:
            ResNetJaxError: the run is absent or damaged, or ``model`` or ``data`` has a wrong type.
        """
        return cls(run_dir, model, data)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_engine"} | {"_states": {}}

    def __repr__(self) -> str:
        what = f"{self.model_name} on {self.config.data.name}, {self._epochs()}"
        return f"Run({str(self.path)!r}, {what})"

    def _repr_html_(self) -> str:
        import pandas as pd

        facts = {"run": str(self.path), "model": self.model_name, "data": self.config.data.name}
        facts |= {"seed": str(self.config.seed), "trained for": (trained := self._epochs())}
        for row in reversed([] if trained == UNREADABLE else self._folder.read_metrics()):
            if row["kind"] != "test":
                break  # tests before it are of an earlier end
            key = f"{row['split']}, {row['checkpoint']}"
            facts[key] = f"accuracy {row['accuracy']:.2%}, loss {row['loss']:.4f}"
        return pd.Series(facts).to_frame().to_html(header=False)

    @property
    def model_name(self) -> str:
        """The network in a word or two: ``plain resnet18``, or the class of a custom one."""
        own = self.parts.get("model")
        return own.rpartition(".")[2].replace("/", "_") if own else self.config.model.title

    def _epochs(self) -> str:
        try:
            rows = self._folder.holding(self._record).read_metrics()
        except ResNetJaxError:  # `repr` must not fail
            return UNREADABLE
        epochs = max((row["epoch"] for row in rows), default=0)
        return f"{epochs:.4g} of {self.config.epochs:g} epochs"

    def metrics(self) -> "pd.DataFrame":
        """Return the lines of ``metrics.jsonl``, one row each; see docs/run_folder.md."""
        import pandas as pd

        rows = self._folder.holding(self._record).read_metrics()
        return pd.DataFrame(rows, columns=None if rows else sorted(COMMON))

    def jax_settings(self) -> AbstractContextManager[None]:
        """Return a context manager that applies the run's precision and compilation cache."""
        return configured_jax(self.config)

    def variables(self, checkpoint: Checkpoint = "best") -> dict[str, Any]:
        """Return copies of ``{"params", "batch_stats"}`` on one device, yours, for ``model.apply``.

        Raises:
            ResNetJaxError: no checkpoint verifies, or `open` was not given the user's own network.
        """
        with configured_jax(self.config):
            copies = jax.tree.map(np.array, self._state(checkpoint).variables)
            return jax.device_put(copies, find_devices(local=True)[0])

    def predict(self, images: np.ndarray, checkpoint: Checkpoint = "best") -> np.ndarray:
        """Return class probabilities, ``float32[N, K]``, for images as they come from the dataset.

        Args:
            images: ``uint8[N, H, W, C]`` with the run's number of channels; ``(H, W)`` must be the
                run's too, unless the run resizes its images (``--data.image-size`` without
                ``--data.center-crop``).
            checkpoint: which parameters to use.

        Raises:
            ResNetJaxError: the images have another type or shape, or the probabilities are not
                finite.
        """
        images = self.preprocessing.checked(images)
        with configured_jax(self.config):
            probabilities = self._engine.predict(self._state(checkpoint), images)
        self.check_finite(probabilities, checkpoint)
        return probabilities

    def check_finite(self, outputs: ArrayLike, checkpoint: Checkpoint) -> None:
        """Raise `ResNetJaxError` if outputs of the network are not finite."""
        if not np.isfinite(outputs).all():
            raise ResNetJaxError(
                f"the outputs of the {checkpoint} parameters of {self.path} are not finite: give "
                "another --checkpoint, or train again with a smaller --optim.learning-rate"
            )

    def export(
        self, format: Format, output: PathLike | None = None, *, checkpoint: Checkpoint = "best"
    ) -> Path:
        """Write the network to a file, with class names and preprocessing, and return its path.

        >>> run.export("onnx")  # doctest: +SKIP
        PosixPath('/home/me/runs/quickstart-seed0/export/resnet18.onnx')

        Args:
            format: ``torchvision`` for the weights alone, see `interop.export_torchvision`; for
                the whole network ``stablehlo``, see `interop.export_stablehlo`, or ``onnx``, see
                `interop.export_onnx`.
            output: the file. Default: ``export/MODEL.SUFFIX`` in the run's folder.
            checkpoint: which parameters to use.

        Raises:
            ResNetJaxError: the format cannot hold the network, a package is missing, the file
                cannot be written or (stablehlo, onnx) computes something else; an older file stays.
        """
        if format not in EXPORTS:
            raise ResNetJaxError(f"format {format} is not known: give one of {', '.join(EXPORTS)}")
        write, suffix = EXPORTS[format]
        name = self.model_name.replace(" ", "_")
        path = expanded(output) if output else self.path / "export" / f"{name}{suffix}"
        check_replaceable(path) if output else refuse_links(self.path)
        made_by = {"data": self.config.data.name, "checkpoint": checkpoint}
        with configured_jax(self.config):
            known = self.variables(checkpoint), self.preprocessing, self.class_names, made_by
            write(path, Network(self.model, *known))
        return path

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that turns the dataset's images into the network's input."""
        return Preprocessing.of(self.config.data, self.image_shape)

    @cached_property
    def model(self) -> Any:
        """The network; `ResNetJaxError` if it is the user's own and `open` was not given it."""
        own = self.parts.get("model")
        if own and self._own.model is None:
            raise ResNetJaxError(f"{self.path} trained {own}: open it with that (model=...)")
        return self._own.model or make_model(self.config, len(self.class_names))

    def preprocess(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Return the network's input, float32[N, H, W, C], of images as they come from the dataset.

        This may be called within `jax.jit`. It refuses the same types and shapes as `predict`.
        """
        return self.preprocessing(self.preprocessing.checked(images))

    def evaluate(
        self, split: str = "test", checkpoint: Checkpoint = "best", data_dir: PathLike | None = None
    ) -> Evaluation:
        """Evaluate on a split of the run's data: train, validation or test.

        A run on a subset (``--data.subset``) also has ``test_all``, all test images.

        Args:
            split: the split's name.
            checkpoint: which parameters to use.
            data_dir: where the prepared dataset or the images are now, if they were moved.

        Raises:
            ResNetJaxError: there is no such split, the data are missing or changed, or the
                network's outputs are not finite.
        """
        images = self.split(split, data_dir)
        with configured_jax(self.config):
            found = self._engine.evaluate(self._state(checkpoint), images)
        self.check_finite(found.loss, checkpoint)
        return found

    def split(self, name: str = "test", data_dir: PathLike | None = None) -> Split:
        """Return the images and labels of a split of the run's data, see `evaluate`."""
        settings = replaced(self.config.data, {"dir": str(expanded(data_dir))} if data_dir else {})
        data, splits = load_splits(settings, self._own.data)
        usable = [split for split in splits if len(splits[split])]
        if name not in usable:
            what = "holds no images" if name in splits else "is not there"
            raise ResNetJaxError(f"split {name} {what}: give --split {' or '.join(usable)}")
        if data.fingerprint != self.fingerprint:
            raise ResNetJaxError(
                f"dataset {self.config.data.name} has fingerprint {data.fingerprint[:12]}, the run "
                f"was trained on {self.fingerprint[:12]}: give that one's folder by --data.dir"
            )
        return splits[name]

    def verify(self) -> VerifyReport:
        """Read the metrics and every file of every checkpoint, and report which are whole."""
        return self._folder.holding(self._record).verify()

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self.config, self.class_names, self.image_shape)

    def _state(self, checkpoint: Checkpoint) -> TrainState:
        if checkpoint not in self._states:
            engine = self._engine  # first, because it says what is wrong with the devices
            variables = self._folder.holding(self._record).read_variables(checkpoint)
            if not has_parameters(self.model, self.preprocessing.input_shape, variables):
                name = type(self._own.model).__name__ if self._own.model else self.config.model.name
                raise ResNetJaxError(
                    f"{self.path} was trained with another network than {name}: open it with that "
                    "network (model=...), in a program that makes it"
                )
            state = TrainState.of_variables(self.model, variables)
            self._states[checkpoint] = engine.replicate(state)
        return self._states[checkpoint]
