"""A run, opened: what it was told, what it measured, and what it learnt."""

import dataclasses
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from resnet_jax.config import TrainConfig
from resnet_jax.data import VerifyReport
from resnet_jax.data.dataset import AnySplit
from resnet_jax.errors import ResNetJaxError
from resnet_jax.models import ResNet
from resnet_jax.training.evaluation import Evaluation
from resnet_jax.training.folder import DataFacts, RunFolder
from resnet_jax.training.hosts import is_first
from resnet_jax.training.loop import fit, load_splits
from resnet_jax.training.program import Program, configure_jax
from resnet_jax.training.progress import Display, Silent
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
    pretrained = None
    if config.init_from is not None:
        from resnet_jax.interop.pretrained import load_pretrained

        pretrained = load_pretrained
    if quiet or not is_first():
        fit(config, Path(run_dir), Silent(), pretrained)
    else:
        with Display() as display:
            fit(config, Path(run_dir), display, pretrained)
    return Run.open(run_dir)


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
        folder = RunFolder(Path(run_dir))
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
            ResNetJaxError: the images have another type or shape.
        """
        images = self._checked(images)
        return self._program.predict(self._state(checkpoint), images)

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
        return self._program.preprocess(self._checked(images))

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
            ResNetJaxError: there is no such split, or the data are missing or changed.
        """
        program = self._program
        images = program.put(self.split(split, data_dir))
        return program.evaluate(self._state(checkpoint), images)

    def split(self, name: str = "test", data_dir: str | None = None) -> AnySplit:
        """The images and labels of a split of the run's data, see `evaluate`."""
        # What was prepared from IDX files is prepared; they may be gone.
        there = dataclasses.replace(
            self.config.data, dir=data_dir or self.config.data.dir, from_idx=None
        )
        config = dataclasses.replace(self.config, data=there)
        data, splits = load_splits(config)
        usable = [split for split in splits if len(splits[split])]
        if name not in usable:
            what = "holds no images" if name in splits else "is not there"
            raise ResNetJaxError(f"split {name} {what}: give one of {', '.join(usable)}")
        if data.fingerprint != self.fingerprint:
            raise ResNetJaxError(
                f"data set {config.data.name} has fingerprint {data.fingerprint[:12]}, the run was "
                f"trained on {self.fingerprint[:12]}: give that one's folder by --data.dir"
            )
        found: AnySplit = splits[name]
        return found

    def verify(self) -> VerifyReport:
        """Reads the metrics and every file of every checkpoint, and reports which are whole."""
        good, damaged = ["config.yaml"], []
        try:
            self._folder.read_metrics()
            good.append("metrics.jsonl")
        except ResNetJaxError as error:
            damaged.append(str(error))
        checkpoints = self._folder.checkpoints
        for step in checkpoints.steps():
            try:
                checkpoints.verify(step)
                good.append(f"checkpoints/{step}")
            except ResNetJaxError as error:
                damaged.append(str(error))
        whole = [step for step in checkpoints.steps() if f"checkpoints/{step}" in good]
        usable = "nothing"
        if whole:
            usable = f"latest: step {whole[-1]}, best: step {checkpoints.best_of(whole)}"
        return VerifyReport(str(self.path), self.path, tuple(good), tuple(damaged), usable)

    @cached_property
    def _program(self) -> Program:
        configure_jax(self.config)
        # The schedule's length matters for training alone.
        return Program(self.config, self.class_names, self.image_shape, total_steps=1)

    def _state(self, checkpoint: Checkpoint) -> TrainState:
        # Read and verified once: a run that is still training is seen as it was at first sight.
        if checkpoint not in self._states:
            step = self._step(checkpoint)
            template = self._program.template()
            self._states[checkpoint] = self._folder.checkpoints.restore(template, step)
        return self._states[checkpoint]

    def _step(self, checkpoint: Checkpoint) -> int:
        checkpoints = self._folder.checkpoints
        match checkpoint:
            case "best":
                step = checkpoints.best_of(checkpoints.good_steps())
            case "latest":
                step = next(checkpoints.good_steps(), None)
            case _:
                raise ResNetJaxError(f"checkpoint {checkpoint} is not known: give best or latest")
        if step is None:
            raise ResNetJaxError(
                f"{self.path} has no usable checkpoint: run its training command again"
            )
        return step
