"""Spec-sheet figures of GPUs by the name that the driver gives them.

Sources: NVIDIA's data sheets and architecture white papers. Columns: memory GB/s; host link GB/s, one way; dense
TFLOP/s in float32, float16 and bfloat16 with float32 sums (0: no such matrix units).
"""

from __future__ import annotations

from outsize.machine.rates import GpuRates

PCIE3, PCIE4, PCIE4_X8, PCIE5 = 15.75, 31.5, 15.75, 63.0

SHEETS = {
    # Volta, Turing
    "V100-SXM2-16GB": (900, PCIE3, 15.7, 125, 0),
    "V100-SXM2-32GB": (900, PCIE3, 15.7, 125, 0),
    "V100-PCIE-16GB": (900, PCIE3, 14, 112, 0),
    "V100-PCIE-32GB": (900, PCIE3, 14, 112, 0),
    "T4": (320, PCIE3, 8.1, 65, 0),
    "TITAN RTX": (672, PCIE3, 16.3, 130, 0),
    "Quadro RTX 8000": (672, PCIE3, 16.3, 130, 0),
    "RTX 2060": (336, PCIE3, 6.5, 25.8, 0),
    "RTX 2070": (448, PCIE3, 7.5, 29.9, 0),
    "RTX 2080": (448, PCIE3, 10.1, 40.3, 0),
    "RTX 2080 Ti": (616, PCIE3, 13.4, 53.8, 0),
    # Ampere
    "A100-SXM4-40GB": (1555, PCIE4, 19.5, 312, 312),
    "A100-SXM4-80GB": (2039, PCIE4, 19.5, 312, 312),
    "A100-PCIE-40GB": (1555, PCIE4, 19.5, 312, 312),
    "A100 80GB PCIe": (1935, PCIE4, 19.5, 312, 312),
    "A10": (600, PCIE4, 31.2, 125, 125),
    "A40": (696, PCIE4, 37.4, 149.7, 149.7),
    "RTX A5000": (768, PCIE4, 27.8, 111, 111),
    "RTX A6000": (768, PCIE4, 38.7, 154.8, 154.8),
    "RTX 3060": (360, PCIE4, 12.7, 25.5, 25.5),
    "RTX 3070": (448, PCIE4, 20.3, 40.6, 40.6),
    "RTX 3080": (760, PCIE4, 29.8, 59.5, 59.5),
    "RTX 3090": (936, PCIE4, 35.6, 71, 71),
    "RTX 3090 Ti": (1008, PCIE4, 40, 80, 80),
    # Ada Lovelace
    "L4": (300, PCIE4, 30.3, 121, 121),
    "L40S": (864, PCIE4, 91.6, 362, 362),
    "RTX 6000 Ada Generation": (960, PCIE4, 91.1, 364, 364),
    "RTX 4060": (272, PCIE4_X8, 15.1, 30.2, 30.2),
    "RTX 4060 Laptop GPU": (256, PCIE4_X8, 11.6, 23.2, 23.2),
    "RTX 4060 Ti": (288, PCIE4_X8, 22.1, 44.1, 44.1),
    "RTX 4070": (504, PCIE4, 29.1, 58.3, 58.3),
    "RTX 4080": (717, PCIE4, 48.7, 97.5, 97.5),
    "RTX 4080 SUPER": (736, PCIE4, 52.2, 104.4, 104.4),
    "RTX 4090": (1008, PCIE4, 82.6, 165.2, 165.2),
    # Hopper, Blackwell
    "H100 80GB HBM3": (3352, PCIE5, 67, 989, 989),
    "H100 PCIe": (2039, PCIE5, 51, 756, 756),
    "H100 NVL": (3938, PCIE5, 60, 835, 835),
    "H200": (4800, PCIE5, 67, 989, 989),
    "RTX 5080": (960, PCIE5, 56.3, 112.6, 112.6),
    "RTX 5090": (1792, PCIE5, 104.8, 209.5, 209.5),
}
PREFIXES = ("NVIDIA ", "Tesla ", "GeForce ")


def gpu_sheet(name: str) -> GpuRates | None:
    """The figures of the GPU of exactly this name ("NVIDIA GeForce RTX 4090"), or None for one not listed.

    Exactly, because a "Ti" or a "Laptop GPU" at the end makes another GPU.
    """
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    sheet = SHEETS.get(name)
    if sheet is None:
        return None
    memory, link, *tera = sheet
    float32, float16, bfloat16 = (figure * 1e12 for figure in tera)
    return GpuRates(memory * 1e9, link * 1e9, float32, float16, bfloat16)
