"""Residual networks in JAX and Flax.

    import resnet_jax as rj

    model = rj.ResNet18(num_classes=10)
    data = rj.load_dataset("mnist_5k")
    run = rj.train(rj.PRESETS["quickstart"], "runs/quickstart-seed0")
    run.evaluate("test").accuracy

``__init__.pyi`` lists the names. Each is imported when it is first used, because
`resnet-jax --help` must not wait for JAX.
"""

import lazy_loader

__version__ = "0.2.0.dev0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
