"""Makes the stored run that later versions must open, with what it says of itself.

Command:   python tests/reliability/make_stored_run.py
Run it only when the format of a run's folder changes on purpose; keep the older ones then.
"""

import json
import shutil

from test_moves import EXPECTED, STORED, digest

import resnet_jax as rj

CONFIG = rj.TrainConfig(
    model=rj.ModelConfig(width=2),
    data=rj.DataConfig(name="mnist_5k", subset=(100, 50, 50)),
    optim=rj.OptimConfig(learning_rate=0.05),
    epochs=2,
    batch_size=20,
    ema=0.9,
    eval_every=10,
)


def main() -> None:
    """Trains it, and writes both."""
    shutil.rmtree(STORED, ignore_errors=True)
    run = rj.train(CONFIG, STORED, quiet=True)
    for name in (".lock", "run.log"):  # of this machine alone
        (STORED / name).unlink(missing_ok=True)
    found = run.evaluate("test")
    EXPECTED.write_text(
        json.dumps(
            {
                "latest": digest(run.variables("latest")),
                "best": digest(run.variables("best")),
                "rows": len(run.metrics()),
                "step": int(run.metrics()["step"].max()),
                "correct": found.correct,
                "loss": found.loss,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
