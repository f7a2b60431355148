"""The training loop: from a configuration to a finished run, and on from any step of it."""

import hashlib
import logging
import os
import re
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax.config import Effect, TrainConfig, options_with, replaced, settings
from resnet_jax.data.dataset import Split, pixel_statistics
from resnet_jax.data.load import load_splits
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.errors import ResNetJaxError
from resnet_jax.training import distributed
from resnet_jax.training.callbacks import Callback
from resnet_jax.training.checks import check_against_dataset
from resnet_jax.training.evaluation import Evaluation
from resnet_jax.training.folder import EVENTS, DataFacts, RunFolder
from resnet_jax.training.program import Program, configured_jax, find_devices
from resnet_jax.training.state import TrainState
from resnet_jax.training.steps import Metrics
from resnet_jax.training.tensorboard import Events

log = logging.getLogger(__name__)
events_log = logging.getLogger(EVENTS)

TEST_SPLITS = ("test", "test_all")


class NotFiniteError(ResNetJaxError):
    """The loss or the gradient became infinite or NaN."""


class StoppedError(ResNetJaxError):
    """A signal stopped the run; it was saved and the same command continues it."""

    exit_code = 75


def fit(
    config: TrainConfig,
    run_dir: Path,
    callback: Callback,
    pretrained: Callable[[Program], dict[str, Any]] | None = None,
) -> None:
    """Trains until the configuration is fulfilled; begins a run or resumes the one in ``run_dir``.

    A run begins with the variables that ``pretrained`` gives, or with random ones.

    Raises:
        ResNetJaxError: the configuration is refused, the data are not to be had, the run's folder
            is another run's, is in use or cannot be written.
        NotFiniteError: the loss or the gradient was not finite; the last checkpoint is older.
        StoppedError: SIGINT, SIGTERM or SIGHUP arrived, at any process; its step is saved.
    """
    with configured_jax(config):
        _fit(config, run_dir, callback if distributed.is_main_process() else Callback(), pretrained)


def _fit(
    config: TrainConfig,
    run_dir: Path,
    callback: Callback,
    pretrained: Callable[[Program], dict[str, Any]] | None,
) -> None:
    data, splits = distributed.main_process_first(lambda: load_splits(config.data))
    facts = DataFacts(data.fingerprint, data.class_names, data.image_shape)
    folder = RunFolder(run_dir)
    config = _with_statistics(config, folder, data.train)
    devices = find_devices()
    check_against_dataset(
        config,
        num_train=len(data.train),
        num_validation=len(data.validation),
        image_shape=data.image_shape,
        num_devices=len(devices),
    )
    sampler = EpochSampler(len(data.train), config.batch_size, config.seed)
    total_steps = sampler.steps(config.epochs)
    program = Program(config, data.class_names, data.image_shape, total_steps, devices)
    distributed.assert_equal(
        "data with fingerprint", data.fingerprint, "give all processes the same data"
    )
    distributed.assert_equal(
        "settings with digest", _digest(config), "give all processes the same options"
    )
    if folder.exists:
        folder.check_same(config, facts)
    # Read before anything is written, and not at all where a run goes on.
    variables = pretrained(program) if pretrained and not folder.checkpoints.steps() else None
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(folder.opened_for_writing())
            # A run may go on with other settings of the kind that changes nothing learnt.
            if not folder.exists or folder.read_config()[0] != config:
                folder.write_config(config, facts)

        distributed.broadcast_from_main(begin)
        stop = stack.enter_context(_signals())
        step = distributed.broadcast_from_main(lambda: next(folder.checkpoints.good_steps(), 0))
        if step:
            state = folder.checkpoints.restore(program.template(), step)
            callback.log(f"resumes at step {step} of {total_steps}")
        else:
            state = program.init()
            if pretrained:
                state = program.adopt(state, variables or pretrained(program))
        rows = distributed.broadcast_from_main(lambda: folder.rewind_metrics(step))
        if step:
            distributed.broadcast_from_main(lambda: _warn_of_changed_metrics(folder, step))
        events = None
        if config.tensorboard and distributed.is_main_process():
            events = Events(folder.path / "tensorboard", rows)
        try:
            _Loop(program, folder, callback, sampler, splits, rows, stop, events).run(state, step)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ResNetJaxError(
                f"--batch-size {config.batch_size} does not fit in the device's memory: give a "
                f"smaller one, --accumulate 2, --model.remat or --model.dtype bfloat16"
            ) from error
        finally:
            if events:
                events.close()


def _warn_of_changed_metrics(folder: RunFolder, step: int) -> None:
    try:
        folder.check_metrics(step)
    except ResNetJaxError as error:
        log.warning("%s; the run goes on with them", error)


def _with_statistics(config: TrainConfig, folder: RunFolder, train: Split) -> TrainConfig:
    """The configuration with a mean and a standard deviation: given, the run's, or the images'."""
    missing = [name for name in ("mean", "std") if getattr(config.data, name) is None]
    if not missing:
        return config
    recorded = folder.read_config()[0].data if folder.exists else None
    if recorded is not None:
        known = {"mean": recorded.mean, "std": recorded.std}
    else:
        known = dict(zip(("mean", "std"), pixel_statistics(train), strict=True))
    return replaced(config, {f"data.{name}": known[name] for name in missing})


def _digest(config: TrainConfig) -> str:
    """The digest of the settings that all processes of a run must share."""
    local = options_with(Effect.LOCAL)
    shared = [(s.option, s.value) for s in settings(config) if s.option not in local]
    return hashlib.sha256(repr(shared).encode()).hexdigest()


class _Loop:
    """One process's share of a run. ``rows`` are the metrics so far, the run's only memory."""

    def __init__(
        self,
        program: Program,
        folder: RunFolder,
        callback: Callback,
        sampler: EpochSampler,
        splits: dict[str, Any],
        rows: list[dict[str, Any]],
        stop: list[int],
        events: Events | None,
    ) -> None:
        self.program, self.folder, self.callback = program, folder, callback
        self.sampler, self.splits, self.rows, self.stop = sampler, splits, rows, stop
        self.config, self.events = program.config, events
        self.seconds_before = max((row["seconds"] for row in rows), default=0.0)
        self.began = time.perf_counter()
        self.asked: deque[jax.Array] = deque()
        self.satisfied = self._is_satisfied()

    def run(self, state: TrainState, step: int) -> None:
        total, config = self.program.total_steps, self.config
        if self._tested(step):
            self.callback.log(f"{self.folder.path} is finished; nothing to do")
            return
        events_log.info("trains from step %d of %d", step, total)
        self.callback.on_start(step, total)
        order = map(self.sampler.batch, range(step, total))
        batches = self.program.batches(self.splits["train"], order)
        measured: list[Metrics] = []
        since = time.perf_counter()
        while step < total and not self.satisfied:
            state, metrics = self.program.train(state, *next(batches))
            step += 1
            measured.append(metrics)
            if len(measured) > 2:
                # Stay two steps ahead of the device and no more: what is shown has happened.
                measured[-3].loss.block_until_ready()
            self.callback.on_step(step)
            evaluate = self._evaluates_after(step)
            stop = self._stops()  # one look at it: only what was found finite is saved below
            if step % config.log_every == 0 or step == 1 or evaluate or stop:
                self._log_training(state, step, measured, since)
                measured = []
                since = time.perf_counter()
            if evaluate:
                self._validate_and_save(state, step)
                since = time.perf_counter()
            if stop:
                if not evaluate:
                    self._save(state, step, None)
                name = signal.Signals(self.stop[0]).name if self.stop else "a signal to another"
                events_log.info("%s: saved step %d and stopped", name, step)
                raise StoppedError(
                    f"{name}: saved step {step} of {total} in {self.folder.path}; "
                    f"the same command continues"
                )
        self._test(state, step)
        events_log.info("finished at step %d", step)

    def _stops(self) -> bool:
        """Whether to stop after this step, on which all processes must agree.

        Of several, each tells the others at every step whether it has got a signal, and all act on
        what was told two steps earlier, which has arrived by now: nobody waits for it.
        """
        if distributed.process_count() == 1:
            return bool(self.stop)
        self.asked.append(self.program.is_asked_anywhere(bool(self.stop)))
        return len(self.asked) > 2 and bool(self.asked.popleft())

    def _evaluates_after(self, step: int) -> bool:
        """Every ``--eval-every`` steps or at the step nearest to an epoch's end; at the end too."""
        if step == self.program.total_steps:
            return True
        if self.config.eval_every is not None:
            return step % self.config.eval_every == 0
        per_epoch = self.sampler.num_examples / self.config.batch_size
        epoch = round(step / per_epoch)
        return epoch >= 1 and step == round(epoch * per_epoch)

    def _is_satisfied(self) -> bool:
        """Whether ``--target`` is reached or ``--patience`` is over."""
        accuracies = [row["accuracy"] for row in self.rows if row["kind"] == "validation"]
        if not accuracies:
            return False
        target, patience = self.config.target, self.config.patience
        if target is not None and accuracies[-1] >= target:
            return True
        since_best = len(accuracies) - 1 - accuracies.index(max(accuracies))
        return patience is not None and since_best >= patience

    def _tested(self, step: int) -> bool:
        """Whether nothing is left to do: training has ended, and what can be tested was."""
        ended = step == self.program.total_steps or self.satisfied
        wanted = {
            (split, checkpoint)
            for split in TEST_SPLITS
            if len(self.splits.get(split, ()))
            for checkpoint in ("latest", "best")
        }
        tested = {(row["split"], row["checkpoint"]) for row in self.rows if row.get("last") == step}
        return ended and wanted <= tested

    def _record(self, *rows: dict[str, Any]) -> None:
        distributed.broadcast_from_main(lambda: self.folder.append_metrics(*rows))
        self.rows.extend(rows)
        if any(row["kind"] == "validation" for row in rows):
            self.satisfied = self._is_satisfied()
        if self.events:
            self.events.add(*rows)
        for row in rows:
            self.callback.on_metrics(row)

    def _row(self, step: int, kind: str, loss: float, accuracy: float, **more: Any) -> dict:
        return {
            "step": step,
            "epoch": step * self.config.batch_size / self.sampler.num_examples,
            "kind": kind,
            "loss": loss,
            "accuracy": accuracy,
            "seconds": round(self.seconds_before + time.perf_counter() - self.began, 3),
            **more,
        }

    def _log_training(
        self, state: TrainState, step: int, measured: list[Metrics], since: float
    ) -> None:
        """One line for the steps since the last one: their mean loss and accuracy."""
        fetched, bad_step = jax.device_get((measured, state.first_bad_step))
        seconds = time.perf_counter() - since  # with the wait for the last of them
        if bad_step >= 0:
            metrics = fetched[int(bad_step) - step + len(fetched)]
            where = _where_not_finite(sorted(state.params), metrics.not_finite)
            what = "gradient" if np.isfinite(metrics.loss) else "loss"
            raise self._not_finite(f"{what} (first in {where})", int(bad_step))
        self._record(
            self._row(
                step,
                "train",
                float(np.mean([metrics.loss for metrics in fetched])),
                float(np.mean([metrics.accuracy for metrics in fetched])),
                grad_norm=float(np.mean([metrics.grad_norm for metrics in fetched])),
                learning_rate=float(self.program.schedule(step - 1)),
                images_per_s=round(len(fetched) * self.config.batch_size / seconds, 1),
            )
        )

    def _validate_and_save(self, state: TrainState, step: int) -> None:
        result = None
        if len(self.splits["validation"]):
            evaluation = self.program.evaluate(state, self.splits["validation"])
            if not np.isfinite(evaluation.loss):
                raise self._not_finite("validation loss", step)
            more = _top5(evaluation)
            loss, accuracy = evaluation.loss, evaluation.accuracy
            self._record(self._row(step, "validation", loss, accuracy, **more))
            result = {"accuracy": evaluation.accuracy, "loss": evaluation.loss}
        self._save(state, step, result)

    def _save(self, state: TrainState, step: int, validation: dict[str, float] | None) -> None:
        """Saves what is finite: the last update may have overflowed after a finite loss."""
        numbers = {**state.params, "running statistics": state.batch_stats}
        # Here and not on the devices: a CPU would compile two small programs for each shape.
        for name, part in jax.device_get(numbers).items():
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part)):
                raise self._not_finite(f"{name} of the parameters", step - 1)
        digest = distributed.broadcast_from_main(lambda: self.folder.metrics_digest(step))
        self.folder.checkpoints.save(state, validation, digest)

    def _not_finite(self, what: str, step: int) -> NotFiniteError:
        saved = self.folder.checkpoints.steps()
        return NotFiniteError(
            f"{what} was not finite at step {step}: the last checkpoint is "
            f"{f'step {saved[-1]}' if saved else 'none'}; try a smaller --optim.learning-rate "
            f"or --optim.clip-norm 1 with another --run-dir"
        )

    def _test(self, state: TrainState, last: int) -> None:
        """The test images are seen here, once, when every choice has been made."""
        rows = self._test_rows(state, "latest", last, last)
        checkpoints = self.folder.checkpoints
        best = distributed.broadcast_from_main(
            lambda: checkpoints.best_of(checkpoints.good_steps())
        )
        if best is not None and best != last:
            state = checkpoints.restore(state, best)
        rows += self._test_rows(state, "best", best or last, last)
        self._record(*rows)

    def _test_rows(
        self, state: TrainState, checkpoint: str, step: int, last: int
    ) -> list[dict[str, Any]]:
        rows = []
        for split in TEST_SPLITS:
            if len(self.splits.get(split, ())):
                found = self.program.evaluate(state, self.splits[split])
                if not np.isfinite(found.loss):
                    raise self._not_finite(f"loss on {split} of the {checkpoint} parameters", step)
                more = {"split": split, "checkpoint": checkpoint, "last": last, **_top5(found)}
                rows.append(self._row(step, "test", found.loss, found.accuracy, **more))
        return rows


def _top5(found: Evaluation) -> dict[str, float]:
    return {} if found.top5 is None else {"top5": found.top5}


def _where_not_finite(groups: list[str], not_finite: np.ndarray) -> str:
    """The group of parameters in which something stopped being finite.

    Going forward that is the first layer whose statistics are not. If all of them are, it happened
    on the way back: the last layer whose gradient is not.
    """

    def depth(name: str) -> tuple[Any, ...]:  # stage2_unit10 comes after stage2_unit9
        numbers = tuple(int(digits) for digits in re.findall(r"\d+", name))
        return name != "stem", name == "head", numbers, name

    gradient, statistics = (
        sorted((name for name, bad in zip(groups, column, strict=True) if bad), key=depth)
        for column in not_finite.T
    )
    return [*statistics, *reversed(gradient), "the sum over all layers"][0]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that gets the number of the first SIGINT, SIGTERM or SIGHUP; the second ends all.

    A thread listens, since Python itself runs a handler only between two of its instructions: the
    main thread may be compiling for minutes. Outside the main thread Python cannot listen to
    signals; then the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def listen() -> None:
        while number := listening.recv(1):
            if number[0] in previous:
                received.append(number[0])
            if len(received) > 1:
                os._exit(128 + received[-1])  # as a shell names an end by a signal

    previous = {}
    listening, told = socket.socketpair()
    told.setblocking(False)
    wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, name="signals", daemon=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        previous[number] = signal.signal(number, lambda number, frame: None)
    thread.start()
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        told.close()
        thread.join()
        listening.close()
