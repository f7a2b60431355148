"""On paper: the time of a training step on 1 to 1,024 devices, term by term.

A step of data-parallel training has four terms:

compute     three times the multiply-adds of the forward pass (forward, gradient of the inputs,
            gradient of the weights), at a sustained share of the chip's peak
gradients   one all-reduce of every parameter, in float32
statistics  batch norm over the global batch: at each layer four small all-reduces that wait for
            one another and for the layer (`ALL_REDUCES`)
input       reading and decoding the host's share of the batch

Images are read ahead, so that a step takes ``max(input, compute + gradients + statistics)``; where
the device is the host's own processor, decoding takes its cores and the terms add up. Nothing else
is counted: no overlap of gradients with the backward pass (it would hide at most ``gradients``), no
start of kernels, no loss of efficiency where a device gets few images, no stragglers.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiments.scaling.decode import DECODE

STEPS_OF_CPU = Path(__file__).parents[1] / "cpu_speed/results.json"
DEVICES = tuple(2**k for k in range(11))  # 1 to 1,024

BYTES_PER_NUMBER = 4  # parameters and statistics are float32, whatever the computation is in
IMAGES = 1_281_167  # of ImageNet to train on,
IMAGE_BYTES = 138e9 / IMAGES  # JPEGs of 138 GB
# Two in the forward pass, where the variance needs the mean, and two in the backward pass, as XLA
# compiles the step for several devices (tests/experiments/test_scaling.py counts them).
ALL_REDUCES = 4
LINK_SHARE = 0.8  # of a link's data-sheet bandwidth that a collective reaches; assumed


@dataclass(frozen=True)
class Network:
    """What a network asks of the machines, for one image."""

    parameters: int
    multiply_adds: int
    norms: tuple[int, ...]  # channels of each batch norm


@cache
def network(depth: int, size: int = 224, channels: int = 3, classes: int = 1000) -> Network:
    """ResNet-``depth``, counted by the package's own summary."""
    from resnet_jax.models import VARIANTS, summarize

    layers = summarize(VARIANTS[f"resnet{depth}"](num_classes=classes), (size, size, channels))
    return Network(
        parameters=sum(layer.parameters for layer in layers),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        norms=tuple(layer.output_shape[-1] for layer in layers if layer.kind == "BatchNorm"),
    )


@dataclass(frozen=True)
class Level:
    """Links that join members: devices, or groups of devices of the level before.

    Attributes:
        members: how many it joins at most.
        bandwidth: bytes/s that a member sends while it receives as many, by the data sheet.
        latency: seconds of one message from member to member.
        axes: of a torus; 0 is a switch, through which each reaches each.
    """

    members: int
    bandwidth: float
    latency: float
    axes: int = 0

    def all_reduce(self, size: float, n: int) -> float:
        """Seconds in which ``n`` members add up ``size`` bytes and all have the sum.

        A ring moves 2 (n - 1) / n of the bytes in 2 (n - 1) messages, one after another; a
        pipelined tree all of them twice in 2 log2(n) messages. The faster is taken. A torus is a
        ring along each axis, in both directions at once.
        """
        if n == 1:
            return 0.0
        each = size / (LINK_SHARE * self.bandwidth)
        if self.axes:
            hops = self.axes * math.ceil(n ** (1 / self.axes) - 1e-9)
            return 2 * (n - 1) / n * each + hops * self.latency
        ring = 2 * (n - 1) / n * each + 2 * (n - 1) * self.latency
        tree = 2 * each + 2 * math.ceil(math.log2(n)) * self.latency
        return min(ring, tree)


@dataclass(frozen=True)
class Machine:
    """Devices, the hosts that feed them, and what joins them.

    Attributes:
        title: for tables.
        flops: a device's peak, in floating-point operations a second (a multiply-add is two).
        share: of the peak that training sustains.
        levels: from the devices outwards; each takes the level before as its members.
        devices_per_host: that share its cores and its storage.
        cores: of a host, hardware cores.
        storage: bytes/s that a host reads.
        batch: images a device, where the batch grows with the devices.
        decodes_itself: whether the device is the host's processor.
        sources: of the numbers, for tables.
    """

    title: str
    flops: float
    share: float
    levels: tuple[Level, ...]
    devices_per_host: int
    cores: int
    storage: float
    batch: int
    sources: str
    decodes_itself: bool = False

    def all_reduce(self, size: float, n: int) -> float:
        """Seconds of an all-reduce over ``n`` devices, level by level."""
        seconds = 0.0
        for level in self.levels:
            joined = min(n, level.members)
            seconds += level.all_reduce(size, joined)
            n = math.ceil(n / joined)
        assert n == 1, f"{self.title} has fewer devices"
        return seconds

    def images_per_s(self, net: Network) -> float:
        """Images a second that one device could train on if nothing held it up."""
        return self.flops * self.share / (3 * 2 * net.multiply_adds)

    @property
    def input_per_s(self) -> float:
        """Images a second that one host reads and decodes."""
        return min(self.cores * decoded_per_s(), self.storage / IMAGE_BYTES)

    def step(self, net: Network, n: int, per_device: float) -> "Step":
        """A step of ``n`` devices with ``per_device`` images each."""
        on_host = min(n, self.devices_per_host) * per_device
        return Step(
            compute=per_device / self.images_per_s(net),
            gradients=self.all_reduce(BYTES_PER_NUMBER * net.parameters, n),
            statistics=sum(
                ALL_REDUCES * self.all_reduce(BYTES_PER_NUMBER * channels, n)
                for channels in net.norms
            ),
            input=on_host / self.input_per_s,
            one_after_another=self.decodes_itself,
        )


@dataclass(frozen=True)
class Step:
    """Seconds of a step, by term."""

    compute: float
    gradients: float
    statistics: float
    input: float
    one_after_another: bool = False

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        device = self.compute + self.gradients + self.statistics
        return device + self.input if self.one_after_another else max(device, self.input)

    @property
    def efficiency(self) -> float:
        """Share of the step in which the devices compute."""
        return self.compute / self.seconds

    @property
    def bound(self) -> str:
        """What to shorten: the input where the devices wait for it, else their longest term."""
        device = {term: getattr(self, term) for term in ("compute", "gradients", "statistics")}
        if not self.one_after_another and self.input > sum(device.values()):
            return "input"
        return max(device, key=device.__getitem__)


@cache
def decoded_per_s() -> float:
    """JPEGs a second that one core makes arrays of, as measured by `decode`."""
    return json.loads(DECODE.read_text())["images_per_s"]


@cache
def flops_of_a_core() -> float:
    """Floating-point operations a second of one core in training, as measured by cpu_speed.

    ResNet-18, 224x224x3, batch 8, on two cores.
    """
    measured = json.loads(STEPS_OF_CPU.read_text())
    (row,) = (
        row
        for row in measured["rows"]
        if (row["case"], row["contender"]) == ("training, 224x224x3, batch 8", "resnet_jax")
    )
    work = 8 * 3 * 2 * network(18).multiply_adds
    return work / (row["median_ms"] / 1e3) / measured["machine"]["cores"]


US = 1e-6
GBIT = 1e9 / 8
CORES = 64


@cache
def machines() -> dict[str, Machine]:
    """The rows of the table of constants."""
    nvlink = Level(8, 450e9, 2.5 * US)  # NVLink 4: 900 GB/s, both directions together
    h100 = {
        "flops": 989e12,  # bfloat16, dense
        "share": 0.15,
        "devices_per_host": 8,
        "cores": 112,
        "storage": 5e9,
        "batch": 128,
    }
    return {
        "cpu": Machine(
            f"CPU hosts, {CORES} cores, 25 GbE",
            flops=CORES * flops_of_a_core(),
            share=1.0,
            levels=(Level(1024, 25 * GBIT, 30 * US),),
            devices_per_host=1,
            cores=CORES,
            storage=25 * GBIT,
            batch=64,
            decodes_itself=True,
            sources=f"measured on 2 cores (`cpu_speed/results.json`), times {CORES // 2}: assumed; "
            "latency of TCP assumed",
        ),
        "h100": Machine(
            "H100, 8 a host, 400 Gb/s a host",
            levels=(nvlink, Level(128, 400 * GBIT, 5 * US)),
            sources="NVIDIA's data sheet of the H100 SXM; host as below with one of its eight "
            "network cards; share, latencies, storage assumed",
            **h100,
        ),
        "dgx": Machine(
            "H100, 8 a host, 8 x 400 Gb/s a host",
            levels=(nvlink, Level(128, 8 * 400 * GBIT, 5 * US)),
            sources="the same, with a network card for each GPU: NVIDIA's data sheet of the "
            "DGX H100",
            **h100,
        ),
        "v5e": Machine(
            "TPU v5e, 8 a host, 256 a pod",
            flops=197e12,
            share=0.25,
            # 400 GB/s both directions together; pods are joined by 6.4 Tb/s each.
            levels=(Level(256, 200e9, 1 * US, axes=2), Level(4, 6400 * GBIT, 50 * US)),
            devices_per_host=8,
            cores=112,
            storage=5e9,
            batch=128,
            sources="docs.cloud.google.com/tpu/docs/v5e; 224 vCPUs taken as 112 cores; share, "
            "latencies, storage assumed",
        ),
        "v5p": Machine(
            "TPU v5p, 4 a host",
            flops=459e12,
            share=0.3,
            levels=(Level(8960, 600e9, 1 * US, axes=3),),
            devices_per_host=4,
            cores=104,
            storage=5e9,
            batch=128,
            sources="docs.cloud.google.com/tpu/docs/v5p; 208 vCPUs taken as 104 cores; share, "
            "latencies, storage assumed",
        ),
    }


GLOBAL_BATCH = 8192  # the largest for which arXiv 1706.02677 keeps the accuracy


def weak(machine: Machine, net: Network, n: int) -> Step:
    """The batch grows with the devices: `Machine.batch` images on each."""
    return machine.step(net, n, machine.batch)


def strong(machine: Machine, net: Network, n: int) -> Step:
    """The batch stays at `GLOBAL_BATCH` images."""
    return machine.step(net, n, GLOBAL_BATCH / n)


Scaling = Callable[[Machine, Network, int], Step]


def bounds(scaling: Scaling, machine: Machine, net: Network) -> list[tuple[int, str]]:
    """From how many devices on which term is the largest, among `DEVICES`."""
    found: list[tuple[int, str]] = []
    for n in DEVICES:
        bound = scaling(machine, net, n).bound
        if not found or found[-1][1] != bound:
            found.append((n, bound))
    return found


def efficient_up_to(
    scaling: Scaling, machine: Machine, net: Network, least: float, devices: Sequence[int] = DEVICES
) -> int | None:
    """The most devices whose efficiency is at least ``least``; None where one has less."""
    enough = [n for n in devices if scaling(machine, net, n).efficiency >= least]
    return max(enough, default=None)


def images_to_hide(machine: Machine, net: Network, n: int) -> int:
    """Images a device of which computing takes as long as all of a step's communication."""
    step = machine.step(net, n, 1)
    return math.ceil((step.gradients + step.statistics) / step.compute)
