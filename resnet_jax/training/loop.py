"""The training loop: train, log, evaluate, save, stop."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np

from resnet_jax.config import TrainConfig
from resnet_jax.errors import ResNetJaxError
from resnet_jax.training.distributed import broadcast_from_main, process_count
from resnet_jax.training.engine import Engine
from resnet_jax.training.metrics import Evaluation
from resnet_jax.training.run_folder import events_log
from resnet_jax.training.setup import Prepared
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Metrics

# Asked after each step: None, or the reason to stop in a word.
ShouldStop = Callable[[], str | None]


class NotFiniteError(ResNetJaxError):
    """The loss or the gradient became infinite or NaN."""


class StoppedError(ResNetJaxError):
    """The run was asked to stop; it was saved and the same command continues it."""

    exit_code = 75


def fit(run: Prepared, should_stop: ShouldStop | None = None) -> None:
    """Train until the configuration is fulfilled, then test; or until `should_stop`."""
    state, step, total, config = run.state, run.step, run.total_steps, run.config
    finished = _is_finished(run, step)
    for callback in run.callbacks if finished or step else ():
        nothing = f"{run.folder.path} is finished; nothing to do"
        callback.log(nothing if finished else f"resumes at step {step} of {total}")
    if finished:
        return
    events_log.info("trains from step %d of %d", step, total)
    for callback in run.callbacks:
        callback.on_start(step, total)
    stop_reason = _agreed(run.engine, should_stop)
    measured: list[Metrics] = []
    since = time.perf_counter()
    while step < total and not run.history.satisfied:
        state, metrics = run.engine.train(state, run.augment_key, next(run.batches))
        step += 1
        measured.append(metrics)
        if len(measured) > 2:
            # At most two steps in flight, so that what is shown has happened.
            measured[-3].loss.block_until_ready()
        for callback in run.callbacks:
            callback.on_step(step)
        evaluates = _evaluates_after(run, step)
        reason = stop_reason()  # read once: what is saved below has been checked
        if step % config.log_every == 0 or step == 1 or evaluates or reason:
            _log_training(run, state, step, measured, since)
            measured, since = [], time.perf_counter()
        if evaluates or reason:
            _save(run, state, step, _validate(run, state, step) if evaluates else None)
            since = time.perf_counter()
        if reason:
            events_log.info("%s: saved step %d and stopped", reason, step)
            raise StoppedError(
                f"{reason}: saved step {step} of {total} in {run.folder.path}; "
                f"the same command continues"
            )
    _test(run, state, step)
    events_log.info("finished at step %d", step)


def _agreed(engine: Engine, should_stop: ShouldStop | None) -> ShouldStop:
    """Return a `should_stop` on which all processes agree.

    Of several, each tells the others at every step whether it has a reason, and all act on what
    was told two steps earlier, which has arrived by now: nobody waits for it.
    """
    told: deque[jax.Array] = deque()
    own: str | None = None

    def ask() -> str | None:
        nonlocal own
        own = own or (should_stop() if should_stop else None)
        if process_count() == 1:
            return own
        told.append(engine.any_process(own is not None))
        if len(told) > 2 and bool(told.popleft()):
            return own or "another process was told to stop"
        return None

    return ask


def _evaluates_after(run: Prepared, step: int) -> bool:
    """Every ``--eval-every`` steps or at the step nearest to an epoch's end; at the end too."""
    if step == run.total_steps:
        return True
    if run.config.eval_every is not None:
        return step % run.config.eval_every == 0
    per_epoch = len(run.splits["train"]) / run.config.batch_size
    epoch = round(step / per_epoch)
    return epoch >= 1 and step == round(epoch * per_epoch)


def _is_finished(run: Prepared, step: int) -> bool:
    """Whether training has ended and all there is to test was tested."""
    ended = step == run.total_steps or run.history.satisfied
    return ended and set(_tests(run)) <= run.history.tested(step)


def _tests(run: Prepared) -> Iterator[tuple[str, str]]:
    """Yield (split, checkpoint) for each test at the end of the run."""
    for checkpoint in ("latest", "best"):
        for split in ("test", "test_all"):
            if len(run.splits.get(split, ())):
                yield split, checkpoint


def _log_training(
    run: Prepared, state: TrainState, step: int, measured: list[Metrics], since: float
) -> None:
    """Record a row for the steps since the last one, their means; refuse what is not finite."""
    fetched, bad_step = jax.device_get((measured, state.first_bad_step))
    seconds = time.perf_counter() - since  # with the wait for the last of them
    if bad_step >= 0:
        metrics = fetched[int(bad_step) - step + len(fetched)]
        what = "gradient" if np.isfinite(metrics.loss) else "loss"
        raise _not_finite(run, what, int(bad_step))
    columns = zip(Metrics._fields, zip(*fetched, strict=True), strict=True)
    means = {name: float(np.mean(values)) for name, values in columns}
    rate = {"learning_rate": float(run.schedule(step - 1))} if run.schedule else {}
    speed = {"images_per_s": round(len(fetched) * run.config.batch_size / seconds, 1)}
    run.history.record({"step": step, "kind": "train", **means, **rate, **speed})


def _validate(run: Prepared, state: TrainState, step: int) -> dict[str, float] | None:
    """Record the evaluation of the validation images, and return it for the checkpoint."""
    if not len(run.splits["validation"]):
        return None
    found = _evaluate(run, state, "validation", step)
    run.history.record({"step": step, "kind": "validation", **found.metrics})
    return {"accuracy": found.accuracy, "loss": found.loss}


def _evaluate(run: Prepared, state: TrainState, split: str, step: int) -> Evaluation:
    found = run.engine.evaluate(state, run.splits[split])
    if not np.isfinite(found.loss):
        raise _not_finite(run, f"{split} loss", step)
    for callback in run.callbacks:
        callback.on_evaluate(step, split, found)
    return found


def _save(run: Prepared, state: TrainState, step: int, validation: dict[str, float] | None) -> None:
    """Save what is finite: the last update may have overflowed after a finite loss."""
    checkpoints = run.folder.checkpoints
    parts = {"parameters": state.params, "running statistics": state.batch_stats}
    # Here and not on the devices: a CPU would compile two small programs for each shape.
    for name, part in jax.device_get(parts).items():
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part)):
            raise _not_finite(run, f"some of the {name}", step - 1)
    digest = broadcast_from_main(lambda: run.folder.metrics_digest(step))
    checkpoints.save(state, validation, digest)
    for callback in run.callbacks:
        callback.on_save(step, checkpoints.directory / str(step))


def _test(run: Prepared, state: TrainState, last: int) -> None:
    """Evaluate the test images, once, when every choice has been made."""
    checkpoints, rows = run.folder.checkpoints, []
    best = broadcast_from_main(lambda: checkpoints.best_of(checkpoints.good_steps())) or last
    states = {"latest": (last, state), "best": (best, state)}
    if best != last:
        states["best"] = (best, checkpoints.restore(state, best))
    for split, checkpoint in _tests(run):
        step, tested = states[checkpoint]
        found = _evaluate(run, tested, split, step)
        where = {"split": split, "checkpoint": checkpoint, "last": last}
        rows.append({"step": step, "kind": "test", **found.metrics, **where})
    run.history.record(*rows)


def _not_finite(run: Prepared, what: str, step: int) -> NotFiniteError:
    saved = run.folder.checkpoints.steps()
    return NotFiniteError(
        f"{what} was not finite at step {step}: the last checkpoint is "
        f"{f'step {saved[-1]}' if saved else 'none'}; try a smaller --optim.learning-rate "
        f"or --optim.clip-norm 1 with another --run-dir"
    )


@contextmanager
def explained_memory(config: TrainConfig) -> Iterator[None]:
    """Turn the devices' lack of memory into one line that says what needs less."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ResNetJaxError(
            f"--batch-size {config.batch_size} does not fit in the device's memory: give a "
            f"smaller one, --accumulate 2, --model.remat or --model.dtype bfloat16"
        ) from error
