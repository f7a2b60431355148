"""The training of a run: open it, train, log, evaluate, save, stop."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from resnet_jax.config import TrainConfig
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.errors import DivergedError, ResNetJaxError
from resnet_jax.interop.weights import initial_variables
from resnet_jax.models import ResNet
from resnet_jax.ops.heuristics import instruction_set
from resnet_jax.training.callbacks import Callback, Events
from resnet_jax.training.distributed import (
    assert_equal,
    assert_shared,
    broadcast_from_main,
    is_main_process,
    process_count,
)
from resnet_jax.training.engine import Engine
from resnet_jax.training.jax_settings import find_devices
from resnet_jax.training.metrics import Evaluation
from resnet_jax.training.optim import make_optimizer, make_schedule, scale_by_layer
from resnet_jax.training.run_folder import Record, RunFolder, events_log
from resnet_jax.training.setup import Custom, open_data
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Metrics

# Called after each step; returns None, or the reason to stop in a word.
ShouldStop = Callable[[], str | None]


class Training:
    """The training of a run from its newest checkpoint on; closing ``stack`` unlocks the folder."""

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        callbacks: Sequence[Callback],
        custom: Custom,
        stack: ExitStack,
    ) -> None:
        self.folder, devices = RunFolder(run_dir), find_devices()
        recorded = self.folder.read_record() if self.folder.exists else None
        known = recorded.config if recorded else None
        config, data, self.splits, model = open_data(config, known, custom, len(devices))
        self.config, self.num_train, self._stack = config, len(data.train), stack
        self.remarks: list[str] = []  # on the initial weights, or on what changed since the start
        self._told: deque[jax.Array] = deque()
        self._reason: str | None = None
        sampler = EpochSampler(self.num_train, config.batch_size, config.seed)
        self.total_steps = sampler.steps(config.epochs)
        # Jitted, because each of its operations would otherwise be a program of its own.
        schedule = jax.jit(make_schedule(config.optim, self.total_steps))
        self.schedule = None if custom.optimizer else schedule
        self.engine = Engine(config, data.class_names, data.image_shape, devices, custom.loss)
        rows = self._begin(data, model, custom, recorded)
        self.callbacks = tuple(callbacks) if is_main_process() else ()
        if config.tensorboard and is_main_process():
            events = Events(self.folder.path / "tensorboard", rows)
            self.callbacks += (stack.enter_context(closing(events)),)
        self.tested = {(r["split"], r["checkpoint"]) for r in rows if r.get("last") == self.step}
        # Moved back by the training time of earlier starts, so that it counts too.
        self.began = time.perf_counter() - max((row["seconds"] for row in rows), default=0.0)
        order = map(sampler.batch, range(self.step, self.total_steps))
        self.batches = stack.enter_context(closing(self.engine.batches(data.train, order)))

    def _begin(
        self, data: Dataset, model: nn.Module, custom: Custom, recorded: Record | None
    ) -> list[dict[str, Any]]:
        """Prepare the first state, lock the folder, and return the metrics of the steps done."""
        config, folder, checkpoints = self.config, self.folder, self.folder.checkpoints
        key = jax.random.key(config.seed, impl="threefry2x32")
        params_key, self.augment_key = jax.random.split(key)
        # A run keeps the instruction set that it began with; a new run takes the main process's.
        here = broadcast_from_main(instruction_set)
        instructions = recorded.instructions if recorded else here
        if isinstance(model, ResNet) and model.lowering == "auto" and instructions:
            model = model.clone(lowering=instructions)
        if instructions not in (None, here) and jax.default_backend() == "cpu":
            self.remarks.append(f"began on {instructions}; on {here} bits may differ")
        began, now = recorded and recorded.made_by.get("jax"), jax.__version__
        if began not in (None, now):
            self.remarks.append(f"began with jax {began!s:.20}; with jax {now} bits may differ")
        tx = custom.optimizer
        if tx is None:
            tx = make_optimizer(config.optim, self.schedule, config.model.frozen_stages)
        elif isinstance(model, ResNet) and model.frozen_stages is not None:
            # Last, so that not even the optimiser's weight decay changes frozen stages.
            tx = optax.chain(tx, scale_by_layer(1.0, model.frozen_stages))
        self._apply = model.apply
        # XLA's own convolution is quicker to trace, and this network never computes one.
        network = model.clone(lowering="reference") if isinstance(model, ResNet) else model
        images = jnp.zeros((1, *self.engine.preprocessing.input_shape), config.model.dtype)
        ema, channels = config.ema is not None, data.image_shape[2]
        create = partial(TrainState.create, network, tx, ema=ema)
        self._shapes = cache(partial(jax.eval_shape, create, params_key, images))
        names, parts = data.class_names, custom.describe(self._shapes, images, data.num_classes)
        record = Record(config, data.fingerprint, names, data.image_shape, parts, instructions)
        folder.check_same(record)
        read = partial(initial_variables, config, model, names, channels, params_key)
        # Read before anything is written, and not at all if the run resumes from a checkpoint.
        initial = read() if config.init_from and not checkpoints.steps() else None

        def lock() -> int:
            self._stack.enter_context(folder.opened_for_writing())
            folder.check_same(record)  # another process may just have begun a run here
            # `check_same` allows some settings to differ from those recorded: record the new ones.
            if recorded != record:
                folder.write_record(record)
            return folder.step_to_go_on_from()

        self.step = self._saved = broadcast_from_main(lock)
        assert_shared(folder.path)
        rows = broadcast_from_main(lambda: folder.rewind_metrics(self.step))
        self.accuracies = [row["accuracy"] for row in rows if row["kind"] == "validation"]
        self._make_state = partial(create, params_key, images)
        if config.init_from and not self.step:
            variables, remark = initial or read()
            self.remarks.append(remark)
            content = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variables))
            digest = hashlib.sha256(content).hexdigest()
            assert_equal("weights with digest", digest, "give all the same --init-from")
            self._make_state = partial(TrainState.of_variables, network, variables, tx, ema=ema)
        return rows

    def _first_state(self) -> TrainState:
        """Return the state to start from, drawn or restored, while a thread compiles the step."""
        engine, shapes = self.engine, self._shapes().replace(apply_fn=self._apply)
        if not (self._is_over() or jax.config.values["jax_disable_jit"]):
            pool = ThreadPoolExecutor(1)
            # wait=False: a failure is raised at once, not after the compilation.
            self._stack.callback(pool.shutdown, wait=False)
            engine.compile_ahead(pool, shapes, self.augment_key)
        if self.step:
            restored = self.folder.checkpoints.restore(engine.abstract(shapes), self.step)
            state = jax.block_until_ready(restored)  # see `Engine._wait_if_shared`
        else:
            state = engine.replicate(self._make_state())
        return state.replace(apply_fn=shapes.apply_fn)

    def fit(self, should_stop: ShouldStop | None = None) -> None:
        """Train as configured, then test; or save and raise if `should_stop` gives a reason."""
        engine, total, ended = self.engine, self.total_steps, self._is_over()
        if ended and set(self._tests()) <= self.tested:
            for callback in self.callbacks:
                callback.log(f"{self.folder.path} is finished; nothing to do")
            return
        notes = [f"resumes at step {self.step} of {total}"] if self.step else []
        if process_count() > 1:  # shown, as a scheduler may have given fewer than there are
            devices = engine.replicated.mesh.size
            notes.append(f"{devices} devices of {process_count()} processes")
        notes += self.remarks
        events_log.info("; ".join([f"trains from step {self.step} of {total}", *self.remarks]))
        for callback in self.callbacks:
            if notes:
                callback.log("; ".join(notes))
            callback.on_start(self.step, total)
        self.state = self._first_state()
        measured: list[Metrics] = []
        since = time.perf_counter()
        while not ended:
            self.state, metrics = engine.train(self.state, self.augment_key, next(self.batches))
            self.step += 1
            measured.append(metrics)
            if len(measured) > 2:
                # At most two steps are in flight, so the progress shown is at most two steps ahead.
                measured[-3].loss.block_until_ready()
            for callback in self.callbacks:
                callback.on_step(self.step)
            evaluates = self._evaluates_now()
            reason = self._agreed(should_stop)  # read once, so that each save follows a check
            if self.step % self.config.log_every == 0 or self.step == 1 or evaluates or reason:
                self._log_training(measured, since)
                measured, since = [], time.perf_counter()
            if evaluates or reason:
                self._save(self._validate() if evaluates else None)
                ended, since = self._is_over(), time.perf_counter()
            if reason:
                saved = f"{reason}: saved step {self.step} of {total} in {self.folder.path}"
                raise ResNetJaxError(f"{saved}; the same command continues", exit_code=75)
        self._test()
        events_log.info("finished at step %d", self.step)

    def _agreed(self, should_stop: ShouldStop | None) -> str | None:
        """Ask `should_stop`, and return the reason to stop on which all processes agree.

        If there are several, each tells the others at every step whether it has a reason, and all
        act on the answers of two steps earlier, which have arrived by now, so that none waits.
        """
        self._reason = self._reason or (should_stop() if should_stop else None)
        if process_count() == 1:
            return self._reason
        self._told.append(self.engine.any_process(self._reason is not None))
        if len(self._told) > 2 and bool(self._told.popleft()):
            return self._reason or "another process was told to stop"
        return None

    def _evaluates_now(self) -> bool:
        """Whether to evaluate: by ``--eval-every`` or nearest an epoch's end, and at the end."""
        if self.step == self.total_steps:
            return True
        if self.config.eval_every is not None:
            return self.step % self.config.eval_every == 0
        per_epoch = self.num_train / self.config.batch_size
        epoch = round(self.step / per_epoch)
        return 1 <= epoch < self.config.epochs and self.step == round(epoch * per_epoch)

    def _is_over(self) -> bool:
        return self.step >= self.total_steps or satisfied(self.config, self.accuracies)

    def _tests(self) -> list[tuple[str, str]]:
        """List (split, checkpoint) of each final test, on validation if there is no test split."""
        usable = {name for name, split in self.splits.items() if len(split)}
        splits = usable & {"test", "test_all"} or usable & {"validation"}
        return [(split, which) for which in ("latest", "best") for split in sorted(splits)]

    def _record(self, *rows: dict[str, Any]) -> None:
        """Add all of the rows or none, each with the epoch of its step and the training time."""
        seconds = round(time.perf_counter() - self.began, 3)
        size, total = self.config.batch_size, self.num_train
        complete = [
            {"step": row["step"], "epoch": row["step"] * size / total, **row, "seconds": seconds}
            for row in rows
        ]
        broadcast_from_main(lambda: self.folder.append_metrics(*complete))
        for row in complete:
            for callback in self.callbacks:
                callback.on_metrics(dict(row))  # a copy that it may change

    def _log_training(self, measured: list[Metrics], since: float) -> None:
        """Record the means over the steps since the last row; raise if a step was not finite."""
        fetched, bad_step = jax.device_get((measured, self.state.first_bad_step))
        seconds = time.perf_counter() - since  # includes the wait for the last step
        if bad_step >= 0:
            metrics = fetched[int(bad_step) - self.step + len(fetched)]
            what = "gradient" if np.isfinite(metrics.loss) else "loss"
            raise self._not_finite(what, int(bad_step))
        row = jax.tree.map(lambda *values: float(np.mean(values, dtype=float)), *fetched)._asdict()
        if self.schedule:
            row["learning_rate"] = float(self.schedule(self.step - 1))
        row["images_per_s"] = round(len(fetched) * self.config.batch_size / seconds, 1)
        self._record({"step": self.step, "kind": "train", **row})

    def _validate(self) -> dict[str, float] | None:
        """Record the evaluation of the validation images, and return it for the checkpoint."""
        if not len(self.splits["validation"]):
            return None
        found = self._evaluate(self.state, "validation", self.step)
        self._record({"step": self.step, "kind": "validation", **found.metrics})
        self.accuracies.append(found.accuracy)
        return {"accuracy": found.accuracy, "loss": found.loss}

    def _evaluate(self, state: TrainState, split: str, step: int) -> Evaluation:
        found = self.engine.evaluate(state, self.splits[split])
        if not np.isfinite(found.loss):
            raise self._not_finite(f"{split} loss", step)
        for callback in self.callbacks:
            callback.on_evaluate(step, split, deepcopy(found))  # a copy that it may change
        return found

    def _save(self, validation: dict[str, float] | None) -> None:
        """Save the state, or raise if the last update overflowed, as it may after a finite loss."""
        checkpoints, step, state = self.folder.checkpoints, self.step, self.state
        parts = {"parameters": state.params, "running statistics": state.batch_stats}
        # Not checked on the devices, because a CPU would compile two small programs per shape.
        for name, part in jax.device_get(parts).items():
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part)):
                raise self._not_finite(f"some of the {name}", step - 1)
        digest = broadcast_from_main(lambda: self.folder.metrics_digest(step))
        checkpoints.save(state, validation, digest)
        self._saved = step
        for callback in self.callbacks:
            callback.on_save(step, checkpoints.directory / str(step))

    def _test(self) -> None:
        """Evaluate the test images once, after every choice has been made."""
        checkpoints, last, rows = self.folder.checkpoints, self.step, []
        best = broadcast_from_main(lambda: checkpoints.best_of(checkpoints.good_steps())) or last
        states = {last: self.state}
        if best != last:
            states[best] = checkpoints.restore(self.state, best)
        evaluate = cache(lambda step, split: self._evaluate(states[step], split, step))
        for split, checkpoint in self._tests():
            step = last if checkpoint == "latest" else best
            where = {"split": split, "checkpoint": checkpoint, "last": last}
            rows.append({"step": step, "kind": "test", **evaluate(step, split).metrics, **where})
        self._record(*rows)

    def _not_finite(self, what: str, step: int) -> DivergedError:
        return DivergedError(
            f"{what} was not finite at step {step}: the last checkpoint is "
            f"{f'step {self._saved}' if self._saved else 'none'}; try a smaller "
            "--optim.learning-rate or --optim.clip-norm 1 with another --run-dir"
        )


def satisfied(config: TrainConfig, accuracies: Sequence[float]) -> bool:
    """Return whether the validation accuracies reach ``--target`` or use up ``--patience``."""
    if not accuracies:
        return False
    since_best = len(accuracies) - 1 - accuracies.index(max(accuracies))
    reached = config.target is not None and accuracies[-1] >= config.target
    return reached or (config.patience is not None and since_best >= config.patience)
