"""The command ``resnet-jax``; also ``python -m resnet_jax``."""

import sys

from resnet_jax.memory import restart_tuned

COMPUTE = {"train", "evaluate", "predict", "report", "export", "demo"}


def main() -> int:
    """`resnet_jax.cli.main`, for what computes in a process whose memory suits it."""
    if COMPUTE & set(sys.argv[1:2]) and not {"-h", "--help"} & set(sys.argv):
        restart_tuned()  # before the imports, which would be done twice
    from resnet_jax import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
