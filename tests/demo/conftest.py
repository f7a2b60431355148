"""A run that took one step: it knows nothing, and answers."""

import pytest

import resnet_jax as rj


@pytest.fixture(scope="session")
def ignorant_run(tmp_path_factory: pytest.TempPathFactory) -> rj.Run:
    config = rj.TrainConfig(
        model=rj.ModelConfig(width=4, lowering="reference"),
        data=rj.DataConfig(name="mnist_5k", subset=(20, 10, 10)),
        batch_size=20,
    )
    return rj.train(config, tmp_path_factory.mktemp("demo") / "ignorant", quiet=True)
