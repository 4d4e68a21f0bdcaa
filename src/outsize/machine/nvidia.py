"""The NVIDIA GPUs of this machine, as the driver's management library (NVML) tells, with what is free on each now.

NVML is asked through nvidia-ml-py, and never torch: no CUDA context is made, so nothing is taken from a GPU by looking.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from outsize.machine.gpu_specs import gpu_sheet
from outsize.machine.linux import Host
from outsize.machine.machine import Device
from outsize.machine.rates import ALL_RATES, PCIE_LANE, UNKNOWN_GPU, GpuRates

DRIVER_TRACES = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")  # Linux, Linux in a container, WSL


def load_nvml(host: Host) -> Any | None:
    """The NVML binding, started; None where there is no driver. The caller calls ``nvmlShutdown``."""
    if not any(map(host.exists, DRIVER_TRACES)):
        return None  # importing the binding takes longer than all the rest of looking at a machine
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def read_gpus(nvml: Any, visible: str | None) -> tuple[Device, ...]:
    """gpu0, gpu1, ... in the order that ``visible`` (CUDA_VISIBLE_DEVICES; None: unset) gives, else NVML's (PCI bus).

    GPUs whose memory the driver does not tell (unified with the host's) are left out. Numbers in ``visible`` are taken
    in PCI bus order; CUDA takes them so with CUDA_DEVICE_ORDER=PCI_BUS_ID, or where all GPUs are alike. So a runtime
    must find its GPUs by ``uuid``.
    """
    handles = list(_visible(nvml, visible))
    if len({_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles}) < len(handles):
        return ()  # CUDA shows no GPU at all where one is named twice
    devices: list[Device] = []
    for handle in handles:
        memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
        if memory is not None:
            devices.append(_device(nvml, handle, f"gpu{len(devices)}", memory))
    return tuple(devices)


def _visible(nvml: Any, visible: str | None) -> Iterator[Any]:
    """Handles in the variable's order. As in CUDA, the list ends at the first entry that names no GPU ("-1")."""
    every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if visible is None:
        yield from every
        return
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdecimal():
            named = every[int(entry) : int(entry) + 1]
        elif entry.startswith("MIG-"):
            named = [handle for handle in [_ask(nvml, "nvmlDeviceGetHandleByUUID", entry)] if handle is not None]
        else:  # "GPU-" and as many digits as tell it from the others
            uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in every] if entry.startswith("GPU-") else []
            named = [handle for handle, uuid in zip(every, uuids, strict=False) if uuid.startswith(entry)]
        if len(named) != 1:
            return
        yield named[0]


def _device(nvml: Any, handle: Any, name: str, memory: Any) -> Device:
    label = _text(nvml.nvmlDeviceGetName(handle))
    rates = gpu_sheet(label) or _estimate(nvml, handle)
    # The slot may be narrower or older than the sheet's, so the driver's word on the link goes first.
    link = _link(nvml, handle)
    if link:
        rates = GpuRates(rates.memory, link, rates.float32, rates.float16, rates.bfloat16)
    return Device(
        name=name,
        kind="gpu",
        capacity_bytes=int(memory.total),
        free_bytes=int(memory.free),
        bytes_per_s=rates.memory,
        label=label,
        matmul_bytes_per_s=rates.matmul_bytes_per_s,
        flops=rates.flops,
        link_bytes_per_s=rates.link_bytes_per_s,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        assumed=ALL_RATES,
    )


def _estimate(nvml: Any, handle: Any) -> GpuRates:
    """Figures of a GPU that no sheet lists, from its clocks.

    memory: clock x 2 (both edges) x bus width; float32: cores x clock x 2 (multiply and add). Matrix units do at least
    twice that in float16 since Volta (7.0), and in bfloat16 since Ampere (8.0).
    """
    bus_bytes = (_ask(nvml, "nvmlDeviceGetMemoryBusWidth", handle) or 0) / 8
    memory = 2e6 * bus_bytes * (_ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_MEM) or 0)
    clock = 1e6 * (_ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM) or 0)
    float32 = 2 * clock * (_ask(nvml, "nvmlDeviceGetNumGpuCores", handle) or 0) or UNKNOWN_GPU.float32
    major = (_ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle) or (0, 0))[0]
    return GpuRates(
        memory=memory or UNKNOWN_GPU.memory,
        link=UNKNOWN_GPU.link,
        float32=float32,
        float16=float32 * (2 if major >= 7 else 1),
        bfloat16=2 * float32 if major >= 8 else 0,
    )


def _link(nvml: Any, handle: Any) -> float:
    """Bytes per second of the PCIe link at its widest (an idle one slows down), 0 where the driver does not say."""
    lane = PCIE_LANE.get(_ask(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle) or 0, 0.0)
    return lane * (_ask(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle) or 0)


def _ask(nvml: Any, question: str, *given: Any) -> Any | None:
    """NVML's answer, or None where this GPU or driver has none."""
    try:
        return getattr(nvml, question)(*given)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # older bindings gave bytes
