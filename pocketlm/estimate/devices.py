"""Devices as plain data: what their makers say they do at most."""

from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Device:
    """flops: dense bfloat16 products a second. Bandwidths in bytes a second, one way: of memory,
    between the devices of one machine (link), and of each device to other machines (network)."""

    name: str
    flops: float
    memory_bytes: float
    bandwidth: float
    link: float
    network: float
    per_machine: int
    source: str


A100 = Device(
    name="a100",
    flops=312e12,
    memory_bytes=80 * GB,
    bandwidth=2039 * GB,
    link=300 * GB,
    network=25 * GB,
    per_machine=8,
    source="NVIDIA A100 80GB SXM datasheet; DGX A100: one 200 Gb/s adapter a GPU",
)
H100 = Device(
    name="h100",
    flops=989e12,
    memory_bytes=80 * GB,
    bandwidth=3350 * GB,
    link=450 * GB,
    network=50 * GB,
    per_machine=8,
    source="NVIDIA H100 SXM datasheet; DGX H100: one 400 Gb/s adapter a GPU",
)
H200 = Device(
    name="h200",
    flops=989e12,
    memory_bytes=141 * GB,
    bandwidth=4800 * GB,
    link=450 * GB,
    network=50 * GB,
    per_machine=8,
    source="NVIDIA H200 SXM datasheet",
)
B200 = Device(
    name="b200",
    flops=2250e12,
    memory_bytes=180 * GB,
    bandwidth=8000 * GB,
    link=900 * GB,
    network=50 * GB,
    per_machine=8,
    source="NVIDIA DGX B200 datasheet, an eighth of it",
)
RTX4090 = Device(
    name="rtx4090",
    flops=165e12,
    memory_bytes=24 * GB,
    bandwidth=1008 * GB,
    link=32 * GB,
    network=12.5 * GB,
    per_machine=8,
    source=(
        "NVIDIA Ada architecture whitepaper (products summed in float32); PCIe 4.0 x16; a network "
        "of 100 Gb/s is our choice"
    ),
)
DEVICES = {row.name: row for row in (A100, H100, H200, B200, RTX4090)}
HERE = "this"


def device(name: str) -> Device:
    """The row of that name; ValueError lists those there are."""
    if name.lower() not in DEVICES:
        raise ValueError(
            f"--gpu {name}: unknown; known are {', '.join(DEVICES)}, and {HERE} for this machine's "
            "processor"
        )
    return DEVICES[name.lower()]
