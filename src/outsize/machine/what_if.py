"""``--what-if CHANGES``: a machine with other memory, another drive, or one more GPU."""

from __future__ import annotations

import re
from dataclasses import replace

from outsize.errors import UsageError
from outsize.machine import rates
from outsize.machine.machine import Device, Machine
from outsize.sizes import parse_rate, parse_size

GRAMMAR = "ram=128GiB,ram=+64GiB,disk@7GB/s,gpu=+24GiB,gpu0=48GiB@2TB/s"


def changed(machine: Machine, text: str) -> Machine:
    """The machine after changes with commas between them, each ``DEVICE[=SIZE][@RATE]``.

    ``=SIZE`` is the device's new size, ``=+SIZE`` adds to it; what is in use stays in use. ``gpu=+SIZE`` adds a GPU:
    like the last one where there is one, else as slow as people still use. ``@RATE`` is the rate of its memory, or of
    reading the drive; matmuls of one row follow the memory. Raises UsageError.
    """
    for part in text.split(","):
        match = re.fullmatch(r"\s*(gpu|gpu\d+|ram|disk)(?:=(\+?)([^@]+))?(?:@(.+))?\s*", part)
        if match is None or not (match[3] or match[4]):
            raise UsageError(f"--what-if does not understand {part.strip()!r}", need=GRAMMAR)
        name, plus = match[1], bool(match[2])
        size = parse_size(match[3]) if match[3] else None
        rate = parse_rate(match[4]) if match[4] else None
        if name == "gpu":
            if not plus or not size:
                raise UsageError(f"--what-if {part.strip()!r}: which GPU?", need="gpu=+SIZE for one more, or gpu0=SIZE")
            machine = _with_gpu(machine, size, rate)
            continue
        device = next((device for device in machine.devices if device.name == name), None)
        if device is None:
            have = ", ".join(device.name for device in machine.devices)
            raise UsageError(f"--what-if {part.strip()!r}: there is no {name}", have=have)
        new = _other(device, size, rate, plus=plus)
        machine = replace(machine, devices=tuple(new if d is device else d for d in machine.devices))
    return replace(machine, name=f"{machine.name} with {text}")


def _other(device: Device, size: int | None, rate: float | None, *, plus: bool) -> Device:
    if size is not None:
        capacity = device.capacity_bytes + size if plus else size
        used = device.capacity_bytes - device.free_bytes
        device = replace(device, capacity_bytes=capacity, free_bytes=max(capacity - used, 0))
    if rate is None:
        return device
    factor = rate / device.bytes_per_s
    matmul = {key: value * factor for key, value in device.matmul_bytes_per_s.items()}
    known = device.assumed | {"bytes_per_s"} | ({"matmul_bytes_per_s"} if matmul else set())
    return replace(device, bytes_per_s=rate, matmul_bytes_per_s=matmul, assumed=frozenset(known))


def _with_gpu(machine: Machine, size: int, rate: float | None) -> Machine:
    name = f"gpu{len(machine.gpus)}"
    if machine.gpus:
        like = machine.gpus[-1]
        gpu = replace(like, name=name, capacity_bytes=size, free_bytes=size, uuid="", assumed=rates.ALL_RATES)
    else:
        sheet = rates.UNKNOWN_GPU
        gpu = Device(
            name, "gpu", size, size, sheet.memory, "one more GPU", sheet.matmul_bytes_per_s, sheet.flops,
            sheet.link_bytes_per_s, assumed=rates.ALL_RATES,
        )  # fmt: skip
    gpu = _other(gpu, None, rate, plus=False)
    return replace(machine, devices=(*machine.gpus, gpu, machine.ram, machine.disk))
