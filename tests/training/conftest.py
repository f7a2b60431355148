"""A run that trains in seconds: 120 digits, a ResNet-18 four channels wide, six steps an epoch."""

import dataclasses

import pytest

import resnet_jax as rj

TINY = rj.TrainConfig(
    model=rj.ModelConfig(width=4, lowering="reference"),  # which compiles three times as fast
    data=rj.DataConfig(name="mnist_5k", subset=(120, 50, 30)),
    augment=rj.AugmentConfig(shift=2, rotation=10),
    optim=rj.OptimConfig(learning_rate=0.05, schedule="cosine", warmup=0.2),
    epochs=2,
    batch_size=20,
    ema=0.9,
    log_every=4,
    eval_every=5,
)


@pytest.fixture(scope="session")
def tiny_config() -> rj.TrainConfig:
    return TINY


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> rj.Run:
    """A whole run, for tests that only read."""
    return rj.train(TINY, tmp_path_factory.mktemp("runs") / "tiny", quiet=True)


@pytest.fixture(scope="session")
def unaveraged_config() -> rj.TrainConfig:
    return dataclasses.replace(TINY, ema=None, optim=rj.OptimConfig(learning_rate=0.05))
