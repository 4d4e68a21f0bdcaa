import pytest

from outsize.machine.gpu_specs import SHEETS, gpu_sheet
from outsize.machine.rates import cpu_flops, cpu_matmul, memory_rate


def test_memory_rate_grows_with_cores_up_to_two_channels() -> None:
    assert [memory_rate(cores) for cores in (1, 2, 8)] == [10e9, 20e9, 40e9]


def test_a_matmul_is_never_faster_than_memory() -> None:
    best = frozenset({"avx2", "avx512_bf16", "avx512f"})
    assert set(cpu_matmul(2, 20e9, best).values()) == {18e9}
    assert cpu_matmul(2, 20e9, best, compiled=False)["bfloat16"] == 14e9
    assert cpu_matmul(2, 20e9, frozenset())["int8"] == pytest.approx(7.8e9)
    assert max(cpu_matmul(64, 40e9, best, compiled=False).values()) == 40e9
    assert max(cpu_matmul(64, 40e9, frozenset()).values()) == 40e9


def test_better_instructions_are_faster() -> None:
    sets = [frozenset(), frozenset({"avx512f"}), frozenset({"avx512f", "avx512_bf16"})]
    rates = [cpu_flops(1, features)["bfloat16"] for features in [*sets, sets[-1] | {"amx_bf16"}]]
    assert rates == sorted(rates)
    assert len(set(rates)) == 4


@pytest.mark.parametrize("name", SHEETS)
def test_sheets_in_plausible_units(name: str) -> None:
    sheet = gpu_sheet(f"NVIDIA {name}")
    assert sheet is not None
    assert 1e11 < sheet.memory < 1e13
    assert 1e10 < sheet.link < 1e11
    assert 1e12 < sheet.float32 <= sheet.float16
    assert sheet.bfloat16 in (0, sheet.float16)


def test_a_gpu_is_known_by_its_whole_name() -> None:
    assert gpu_sheet("NVIDIA GeForce RTX 3090 Laptop GPU") is None
    assert gpu_sheet("Tesla T4") == gpu_sheet("NVIDIA T4") is not None
