"""A run, opened: what it was told, what it measured, and what it learnt."""

import dataclasses
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from resnet_jax.config import TrainConfig
from resnet_jax.data.dataset import Split
from resnet_jax.data.load import load_splits
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.data.report import VerifyReport
from resnet_jax.display import Display
from resnet_jax.errors import ResNetJaxError
from resnet_jax.interop import EXPORTS, Format
from resnet_jax.interop.weights import initial_variables
from resnet_jax.models import ResNet
from resnet_jax.storage import check_replaceable
from resnet_jax.training.callbacks import Callback
from resnet_jax.training.distributed import is_main_process
from resnet_jax.training.evaluation import Evaluation
from resnet_jax.training.folder import DataFacts, RunFolder
from resnet_jax.training.loop import fit
from resnet_jax.training.program import Program, configured_jax
from resnet_jax.training.state import TrainState

if TYPE_CHECKING:
    import jax
    import pandas as pd

Checkpoint = Literal["best", "latest"]


def train(config: TrainConfig, run_dir: str | Path, *, quiet: bool = False) -> "Run":
    """Trains, or resumes the training in ``run_dir``, to its end; makes no report.

    >>> import dataclasses, resnet_jax as rj
    >>> config = dataclasses.replace(rj.PRESETS["quickstart"], epochs=1)
    >>> run = rj.train(config, "runs/one-epoch")  # doctest: +SKIP

    Args:
        config: every setting.
        run_dir: the run's folder, made if it is missing.
        quiet: show no progress.

    Raises:
        ResNetJaxError: see `resnet_jax.training.loop.fit`.
    """
    pretrained = None if config.init_from is None else _initial_variables
    if quiet or not is_main_process():
        fit(config, Path(run_dir), Callback(), pretrained)
    else:
        with Display() as display:
            fit(config, Path(run_dir), display, pretrained)
    return Run.open(run_dir)


def _initial_variables(program: Program) -> dict[str, Any]:
    return initial_variables(
        program.config,
        program.model,
        program.class_names,
        program.image_shape[2],
        program.params_key,
    )


class Run:
    """A run's folder, opened for reading.

    ``"best"`` parameters are those of the best validation accuracy, ``"latest"`` those of the
    newest checkpoint; both are the averaged ones where the run averages its weights.

    >>> run = rj.Run.open("runs/quickstart-seed0")  # doctest: +SKIP
    >>> run.evaluate("test").accuracy  # doctest: +SKIP
    0.99

    Attributes:
        path: the folder.
        config: the run's settings.
        class_names: K names.
        image_shape: ``(H, W, C)`` of the images it was trained on.
        fingerprint: SHA-256 of the data it was trained on, see `Dataset`.
    """

    def __init__(self, folder: RunFolder, config: TrainConfig, facts: DataFacts) -> None:
        self._folder = folder
        self.path = folder.path
        self.config = config
        self.class_names = facts.class_names
        self.image_shape = facts.image_shape
        self.fingerprint = facts.fingerprint
        self._states: dict[Checkpoint, TrainState] = {}

    @classmethod
    def open(cls, run_dir: str | Path) -> Self:
        """Opens a run.

        Raises:
            ResNetJaxError: there is none in ``run_dir``, or its configuration is damaged.
        """
        folder = RunFolder(Path(run_dir).absolute())  # the process may change its folder
        return cls(folder, *folder.read_config())

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.config.model.name} on {self.config.data.name})"

    def _repr_html_(self) -> str:
        """What a notebook shows: what the run is, and its test results."""
        config, tests = self.config, self._folder.read_metrics()
        facts = {
            "run": str(self.path),
            "model": f"{'' if config.model.residual else 'plain '}{config.model.name}",
            "data": config.data.name,
            "seed": str(config.seed),
            "trained for": f"{tests[-1]['epoch']:.3g} of {config.epochs:g} epochs"
            if tests
            else "0 epochs",
        }
        for row in tests:
            if row["kind"] == "test":
                key = f"{row['split']}, {row['checkpoint']}"
                facts[key] = f"accuracy {row['accuracy']:.2%}, loss {row['loss']:.4f}"
        lines = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in facts.items()
        )
        return f"<table>{lines}</table>"

    def metrics(self) -> "pd.DataFrame":
        """The lines of ``metrics.jsonl``: one row each; see docs/run_folder.md."""
        import pandas as pd

        return pd.DataFrame(self._folder.read_metrics())

    def variables(self, checkpoint: Checkpoint = "best") -> dict[str, Any]:
        """``{"params", "batch_stats"}`` for the model's ``apply``.

        Raises:
            ResNetJaxError: the run has no checkpoint that verifies.
        """
        with configured_jax(self.config):
            return self._state(checkpoint).variables

    def predict(self, images: np.ndarray, checkpoint: Checkpoint = "best") -> np.ndarray:
        """Class probabilities of images as they come from the data set.

        Args:
            images: ``uint8[N, H, W, C]`` with the run's number of channels; ``(H, W)`` is the
                run's too, unless the run resizes its images (``--data.image-size`` without
                ``--data.center-crop``).
            checkpoint: whose parameters.

        Returns:
            ``float32[N, K]``.

        Raises:
            ResNetJaxError: the images have another type or shape, or the probabilities are not
                finite.
        """
        images = self._checked(images)
        with configured_jax(self.config):
            probabilities = self._program.predict(self._state(checkpoint), images)
        self._check_finite(probabilities, checkpoint)
        return probabilities

    def _check_finite(self, outputs: ArrayLike, checkpoint: Checkpoint) -> None:
        if not np.isfinite(outputs).all():
            raise ResNetJaxError(
                f"the outputs of the {checkpoint} parameters of {self.path} are not finite: give "
                "another --checkpoint, or train again with a smaller --optim.learning-rate"
            )

    def export(
        self,
        format: Format,
        output: str | Path | None = None,
        *,
        checkpoint: Checkpoint = "best",
    ) -> Path:
        """Write the network to a file for use elsewhere, with class names and preprocessing.

        >>> run.export("onnx")  # doctest: +SKIP
        PosixPath('runs/quickstart-seed0/export/resnet18.onnx')

        Args:
            format: ``torchvision``: weights alone, see `interop.export_torchvision`; the whole
                network: ``stablehlo``, see `interop.export_stablehlo`, or ``onnx``, see
                `interop.export_onnx`.
            output: the file. Default: ``export/MODEL.SUFFIX`` in the run's folder.
            checkpoint: whose parameters.

        Returns:
            The file.

        Raises:
            ResNetJaxError: the format has no such network, a package is missing, the file cannot be
                written, or what it computes is not what the run computes; then no file is left.
        """
        if format not in EXPORTS:
            raise ResNetJaxError(f"format {format} is not known: give one of {', '.join(EXPORTS)}")
        write, suffix = EXPORTS[format]
        name = f"{'' if self.config.model.residual else 'plain_'}{self.config.model.name}"
        path = Path(output) if output else self.path / "export" / f"{name}{suffix}"
        check_replaceable(path)
        with configured_jax(self.config):  # which are written into a network's file
            write(
                path,
                self.model,
                self.variables(checkpoint),
                self.preprocessing,
                self.class_names,
                data=self.config.data.name,
                checkpoint=checkpoint,
            )
        return path

    @property
    def preprocessing(self) -> Preprocessing:
        """The way from the dataset's images to the network's input."""
        return Preprocessing.of(self.config.data, self.image_shape)

    @property
    def model(self) -> ResNet:
        """The network, for `variables`."""
        return self._program.model

    def preprocess(self, images: "np.ndarray | jax.Array") -> "jax.Array":
        """Images as they come from the data set, as the network takes them: float32[N, H, W, C].

        May be called within `jax.jit`.

        Raises:
            ResNetJaxError: the images have another type or shape, see `predict`.
        """
        return self.preprocessing(self._checked(images))

    def _checked(self, images: Any) -> Any:
        images = images if hasattr(images, "dtype") else np.asarray(images)  # it may be traced
        height, width, channels = self.image_shape
        free = self.config.data.image_size is not None and not self.config.data.center_crop
        fits = images.ndim == 4 and images.shape[3] == channels
        if (
            images.dtype != np.uint8
            or not fits
            or not (free or images.shape[1:3] == (height, width))
        ):
            raise ResNetJaxError(
                f"images are {images.dtype}{list(images.shape)}: this run predicts "
                f"uint8[N, {'H, W' if free else f'{height}, {width}'}, {channels}]"
            )
        return images

    def evaluate(
        self, split: str = "test", checkpoint: Checkpoint = "best", data_dir: str | None = None
    ) -> Evaluation:
        """Evaluates on a split of the run's data: train, validation or test.

        A run on a subset (``--data.subset``) also has ``test_all``, all test images.

        Args:
            split: its name.
            checkpoint: whose parameters.
            data_dir: where the prepared data set is now, if not where it was.

        Raises:
            ResNetJaxError: there is no such split, the data are missing or changed, or the
                network's outputs are not finite.
        """
        images = self.split(split, data_dir)
        with configured_jax(self.config):
            found = self._program.evaluate(self._state(checkpoint), images)
        self._check_finite(found.loss, checkpoint)
        return found

    def split(self, name: str = "test", data_dir: str | None = None) -> Split:
        """The images and labels of a split of the run's data, see `evaluate`."""
        folder = data_dir or self.config.data.dir
        data, splits = load_splits(dataclasses.replace(self.config.data, dir=folder))
        usable = [split for split in splits if len(splits[split])]
        if name not in usable:
            what = "holds no images" if name in splits else "is not there"
            raise ResNetJaxError(f"split {name} {what}: give one of {', '.join(usable)}")
        if data.fingerprint != self.fingerprint:
            raise ResNetJaxError(
                f"dataset {self.config.data.name} has fingerprint {data.fingerprint[:12]}, the run "
                f"was trained on {self.fingerprint[:12]}: give that one's folder by --data.dir"
            )
        return splits[name]

    def verify(self) -> VerifyReport:
        """Reads the metrics and every file of every checkpoint, and reports which are whole."""
        good, damaged, whole = ["config.yaml"], [], []
        checkpoints = self._folder.checkpoints
        for step in checkpoints.steps():
            try:
                checkpoints.verify(step)
                whole.append(step)
                good.append(f"checkpoints/{step}")
            except ResNetJaxError as error:
                damaged.append(str(error))
        try:
            self._folder.read_metrics(whole=True)
            for step in whole:
                self._folder.check_metrics(step)
            good.append("metrics.jsonl")
        except ResNetJaxError as error:
            damaged.append(str(error))
        usable = "nothing"
        if whole:
            usable = f"latest: step {whole[-1]}, best: step {checkpoints.best_of(whole)}"
        return VerifyReport(str(self.path), self.path, tuple(good), tuple(damaged), usable)

    @cached_property
    def _program(self) -> Program:
        # The schedule's length matters for training alone.
        return Program(self.config, self.class_names, self.image_shape, total_steps=1)

    def _state(self, checkpoint: Checkpoint) -> TrainState:
        # Read and verified once: a run that is still training is seen as it was at first sight.
        if checkpoint not in self._states:
            variables = self._folder.read_variables(checkpoint)
            self._states[checkpoint] = self._program.for_inference(variables)
        return self._states[checkpoint]
