"""On paper: what bounds a step of data-parallel training of ResNet-50 on 1 to 1,024 devices?

Command:   python -m experiments.scaling.paper     (figure; `experiments.tables` writes the numbers)
Result:    docs/images/scaling.png and the last section of docs/scaling.md: input bounds hosts with
           fast devices; then, on H100, batch norm's all-reduces do
Machine:   none. A model on data-sheet numbers: nothing here was timed on a GPU, TPU or cluster
"""

import math
from dataclasses import dataclass
from functools import cache

from matplotlib.figure import Figure

from experiments.cpu_speed.plot import measured, read
from experiments.plotting import BLUE, GREEN, ORANGE, PINK, logarithmic, panels
from experiments.scaling.decode import decoded_per_s
from experiments.scaling.plot import number
from experiments.tables import ROOT, crossed
from resnet_jax.models import VARIANTS, summarize

DEVICES = tuple(2**k for k in range(11))
SHOWN = (1, 8, 64, 256, 1024)
GLOBAL_BATCH = 8192  # the largest for which arXiv 1706.02677 keeps the accuracy
BYTES = 4  # of a parameter or statistic: float32, whatever the computation is in
IMAGE_BYTES = 138e9 / 1_281_167  # mean size of ImageNet's training JPEGs
ALL_REDUCES = 4  # mean, then variance, and two on the way back; tested on the compiled step
LINK_SHARE = 0.8  # of a link's data-sheet bandwidth that a collective reaches; assumed
US, GBIT = 1e-6, 1e9 / 8
STYLES = {
    "compute": (BLUE, "-", "o"),
    "gradients": (ORANGE, "--", "s"),
    "statistics": (GREEN, "-.", "^"),
    "input": (PINK, ":", "D"),
}


@dataclass(frozen=True)
class Network:
    parameters: int
    multiply_adds: int
    norms: tuple[int, ...]  # channels of each batch norm


@cache
def network(depth: int) -> Network:
    """Count ResNet-``depth`` on 224x224x3 by the package's own summary."""
    layers = summarize(VARIANTS[f"resnet{depth}"](num_classes=1000), (224, 224, 3))
    return Network(
        parameters=sum(layer.parameters for layer in layers),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        norms=tuple(layer.output_shape[-1] for layer in layers if layer.kind == "BatchNorm"),
    )


@dataclass(frozen=True)
class Level:
    """Links that join members: devices, or groups of devices of the level before."""

    members: int  # at most
    bandwidth: float  # bytes/s that a member sends while it receives as many, by the data sheet
    latency: float  # seconds of one message
    axes: int = 0  # of a torus; 0 is a switch, which connects every pair of members

    def all_reduce(self, size: float, n: int) -> float:
        """Return the seconds in which ``n`` members add up ``size`` bytes and all get the sum.

        A ring moves 2 (n - 1) / n of the bytes in 2 (n - 1) messages, one after another; a
        pipelined tree moves all of them twice in 2 log2(n) messages. The faster is taken. A torus
        is a ring along each axis, in both directions at once.
        """
        if n == 1:
            return 0.0
        each = size / (LINK_SHARE * self.bandwidth)
        if self.axes:
            hops = self.axes * math.ceil(n ** (1 / self.axes) - 1e-9)
            return 2 * (n - 1) / n * each + hops * self.latency
        ring = 2 * (n - 1) / n * each + 2 * (n - 1) * self.latency
        return min(ring, 2 * each + 2 * math.ceil(math.log2(n)) * self.latency)


@dataclass(frozen=True)
class Step:
    """Seconds of a step, by term; `bound` names the one that bounds it."""

    compute: float
    gradients: float
    statistics: float
    input: float

    @property
    def seconds(self) -> float:
        return max(self.input, self.compute + self.gradients + self.statistics)

    @property
    def bound(self) -> str:
        if self.seconds == self.input:
            return "input"
        return max(("compute", "gradients", "statistics"), key=lambda term: getattr(self, term))


@dataclass(frozen=True)
class Machine:
    """Devices, the hosts that feed them, and what joins them."""

    title: str
    flops: float  # a device's peak a second; a multiply-add is two
    share: float  # of the peak that training sustains
    levels: tuple[Level, ...]  # from the devices outwards
    devices_per_host: int
    cores: int  # of a host
    storage: float  # bytes/s that a host reads
    batch: int  # images a device, if the batch grows with the devices
    decodes_itself: bool = False  # the device is the host's processor

    def all_reduce(self, size: float, n: int) -> float:
        seconds = 0.0
        for level in self.levels:
            joined = min(n, level.members)
            seconds += level.all_reduce(size, joined)
            n = math.ceil(n / joined)
        assert n == 1, f"{self.title} has fewer devices"
        return seconds

    def step(self, net: Network, n: int, per_device: float) -> Step:
        compute = per_device * 3 * 2 * net.multiply_adds / (self.flops * self.share)
        per_host = min(self.cores * decoded_per_s(), self.storage / IMAGE_BYTES)
        reading = min(n, self.devices_per_host) * per_device / per_host
        return Step(
            compute=compute + reading * self.decodes_itself,
            gradients=self.all_reduce(BYTES * net.parameters, n),
            statistics=sum(ALL_REDUCES * self.all_reduce(BYTES * c, n) for c in net.norms),
            input=reading * (not self.decodes_itself),
        )


def flops_of_a_core() -> float:
    """Return a core's FLOP/s in ResNet-18's training at 224x224x3, batch 8, by cpu_speed."""
    seconds = measured("avx2")["training, 224x224x3, batch 8"]["resnet_jax"]["median_ms"] / 1e3
    cores = read("results", "avx2")["machine"]["cores"]
    return 8 * 3 * 2 * network(18).multiply_adds / seconds / cores


@cache
def machines() -> dict[str, Machine]:
    """Return the rows of the table; shares, latencies of messages and storage are assumed."""
    return {
        # Measured on 2 cores (cpu_speed); that 64 cores are 32 times as fast is assumed.
        "cpu": Machine(
            "CPU hosts, 64 cores, 25 GbE", 64 * flops_of_a_core(), 1.0,
            (Level(1024, 25 * GBIT, 30 * US),), devices_per_host=1, cores=64, storage=25 * GBIT,
            batch=64, decodes_itself=True,
        ),
        # NVIDIA's data sheet of the H100 SXM; NVLink 4: 900 GB/s, both directions together.
        "h100": Machine(
            "H100, 8 a host, 400 Gb/s a host", 989e12, 0.15,
            (Level(8, 450e9, 2.5 * US), Level(128, 400 * GBIT, 5 * US)),
            devices_per_host=8, cores=112, storage=5e9, batch=128,
        ),
        # docs.cloud.google.com/tpu/docs/v5e and v5p, counting two vCPUs as a core. Each pod of
        # 256 v5e is joined to the others by 6.4 Tb/s.
        "v5e": Machine(
            "TPU v5e, 8 a host, 256 a pod", 197e12, 0.25,
            (Level(256, 200e9, 1 * US, axes=2), Level(4, 6400 * GBIT, 50 * US)),
            devices_per_host=8, cores=112, storage=5e9, batch=128,
        ),
        "v5p": Machine(
            "TPU v5p, 4 a host", 459e12, 0.3, (Level(8960, 600e9, 1 * US, axes=3),),
            devices_per_host=4, cores=104, storage=5e9, batch=128,
        ),
    }  # fmt: skip


def step_of(machine: str, batch: str, n: int) -> Step:
    """Return ResNet-50's step if the batch "grows" with devices or "stays" at `GLOBAL_BATCH`."""
    chosen = machines()[machine]
    per_device = chosen.batch if batch == "grows" else GLOBAL_BATCH / n
    return chosen.step(network(50), n, per_device)


def time(seconds: float) -> str:
    value, unit = (seconds, "s") if seconds >= 0.9995 else (1e3 * seconds, "ms")
    return f"{number(value)} {unit}"


def term(name: str, machine: str, batch: str, n: int) -> str:
    return time(getattr(step_of(machine, batch, n), name))


def table_of_steps() -> str:
    """Tabulate a step's time, its share of computing, and its bound if that is not computing."""

    def cell(step: Step) -> str:
        bound = f", {step.bound}" if step.bound != "compute" else ""
        return f"{time(step.seconds)}, {100 * step.compute / step.seconds:.0f} %{bound}"

    cells = {
        (batch, machine.title, f"{n:,}"): cell(step_of(name, batch, n))
        for batch in ("grows", "stays")
        for name, machine in machines().items()
        for n in SHOWN
    }
    return crossed(cells, "batch", "devices")


def draw() -> Figure:
    titles = (machine.title for machine in machines().values())
    figure, grid = panels((12, 5.4), titles, 2, sharex=True, sharey="row")
    for batch, row in zip(("grows", "stays"), grid, strict=True):
        for name, axes in zip(machines(), row, strict=True):
            steps = [step_of(name, batch, n) for n in DEVICES]
            whole = [1e3 * step.seconds for step in steps]
            axes.plot(DEVICES, whole, color="#BBBBBB", lw=7, label="the step")
            for key, (colour, line, marker) in STYLES.items():
                times = [1e3 * getattr(s, key) or math.nan for s in steps]
                style = {"color": colour, "ls": line, "marker": marker, "ms": 3.5, "lw": 1.4}
                axes.plot(DEVICES, times, **style, label=key)
            logarithmic(axes.xaxis, SHOWN)
            logarithmic(axes.yaxis)
        row[0].set_ylim(0.1, 200_000 if batch == "stays" else 1_500)
        row[0].set_ylabel(f"the batch {batch}\nms a step")
    figure.supxlabel("devices", fontsize=10)
    shown = grid[0, 0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside upper center", ncols=5, frameon=False)
    return figure


if __name__ == "__main__":
    draw().savefig(ROOT / "docs/images/scaling.png", dpi=110)
