from __future__ import annotations

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional

from outsize.errors import OutsizeError
from outsize.kernels import bf12_reference
from outsize.kernels.bf12 import Bf12Weight, encode
from outsize.kernels.cpu.library import NoLibrary, load
from outsize.kernels.dispatch import linear
from outsize.models.bf12_layout import bf12_bytes

TYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPES = ((1, 1), (9, 129), (21, 384), (10, 1000), (33, 65), (5, 2048 + 4), (0, 8))  # [out, in]: tails of every kind


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def all_bits() -> torch.Tensor:
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def encoded(weight: torch.Tensor, limit: float = 1.0) -> Bf12Weight:
    made = encode(weight, limit)
    assert made is not None
    return made


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert torch.equal(a.view(torch.int16), b.view(torch.int16))


def kinds() -> dict[str, torch.Tensor]:
    """Weights [out, in] of every kind that there is."""
    bits = all_bits()
    outliers = torch.randn(40, 300) * torch.where(torch.rand(40, 300) < 0.003, 1e6, 0.02)
    sparse = torch.randn(64, 512) * (torch.rand(64, 512) < 0.5)
    wide = torch.randn(50, 700) * torch.exp(8 * torch.randn(50, 700))
    return {
        "one exponent a group": bits.view(512, 128),
        "all at random": bits[torch.randperm(1 << 16)].view(256, 256),
        "all, tails": bits[torch.randperm(1 << 16)].view(1024, 64),
        "finite": bits[bits.isfinite()][: 255 * 251].view(255, 251),
        "near the limits": (torch.randn(64, 130) * 2.0**-124).bfloat16(),
        "denormal": (torch.randn(64, 130) * 2.0**-130).bfloat16(),
        "largest": (torch.randn(64, 130) * 2.0**126).bfloat16(),
        "zeros": torch.zeros(3, 200, dtype=torch.bfloat16),
        "negative zeros": -torch.zeros(3, 200, dtype=torch.bfloat16),
        "outliers": outliers.bfloat16(),
        "half of it zeros": sparse.bfloat16(),
        "wide": wide.bfloat16(),
        "student t": torch.distributions.StudentT(3.0).sample((64, 1024)).mul(0.02).bfloat16(),
    }


@pytest.fixture(params=kinds())
def weight(request: pytest.FixtureRequest) -> torch.Tensor:
    return kinds()[request.param]


def test_every_bit_comes_back(build: str, weight: torch.Tensor) -> None:
    made = encoded(weight)
    assert_same_bits(made.expanded(), weight)
    half = len(weight) // 2
    assert_same_bits(made.expanded(half), weight[half:])
    assert_same_bits(made.expanded(1, half), weight[1:half])


def test_the_twins_make_and_read_the_same_bytes(
    build: str, weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = encoded(weight)
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    monkeypatch.setattr(bf12_reference, "ROWS_AT_ONCE", 3000)
    reference = encoded(weight)
    assert reference.exceptions == made.exceptions
    mine, theirs = (bf12_reference.parts_of(w.stored, *weight.shape, 1.0) for w in (made, reference))
    for name in ("body", "bases", "starts"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
    assert torch.equal(mine.entries[: made.exceptions], theirs.entries[: made.exceptions])
    assert_same_bits(made.expanded(), weight)
    assert_same_bits(made.expanded(1, len(weight) - 1), weight[1:-1])


def test_few_of_a_trained_models_weights_are_exceptions() -> None:
    for weight in (torch.randn(512, 1024) * 0.02, torch.distributions.StudentT(4.0).sample((512, 1024)) * 0.02):
        made = encode(weight.bfloat16())
        assert made is not None
        assert made.exceptions < 2e-4 * weight.numel()


def test_too_many_exceptions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = (torch.randn(64, 1024) * 0.02).bfloat16()
    weight[20:24] = all_bits()[torch.randperm(1 << 16)[:4096]].view(4, 1024)
    for kernels in ("auto", "torch"):
        monkeypatch.setenv("OUTSIZE_KERNELS", kernels)
        assert encode(weight) is None
        found = encoded(weight).exceptions
        assert encode(weight, limit=(found + 0.5) / weight.numel()) is not None
        assert encode(weight, limit=(found - 0.5) / weight.numel()) is None
    assert encode(torch.zeros(1, 1 << 17, dtype=torch.bfloat16)) is None


def test_any_number_of_threads_makes_the_same(build: str) -> None:
    weight = kinds()["wide"]
    made = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        made.append(encoded(weight))
        assert_same_bits(made[-1].expanded(), weight)
    one = bf12_reference.parts_of(made[0].stored, *weight.shape, 1.0)
    for other in (bf12_reference.parts_of(w.stored, *weight.shape, 1.0) for w in made[1:]):
        assert torch.equal(one.starts, other.starts)
        assert torch.equal(one.entries[: made[0].exceptions], other.entries[: made[0].exceptions])
    with ThreadPoolExecutor() as pool:
        for other in pool.map(encoded, [weight] * 4):
            assert_same_bits(other.expanded(), weight)


def test_it_lies_where_it_was_told_and_rows_may_be_apart() -> None:
    whole = torch.randn(40, 600).bfloat16()
    weight = whole[::2, 100:500]
    nbytes = bf12_bytes(*weight.shape, 0.1)
    room = torch.full((nbytes + 256,), 7, dtype=torch.uint8)
    start = -room.data_ptr() % 64
    made = encode(weight, 0.1, into=room[start : start + nbytes])
    assert made is not None
    assert made.stored.data_ptr() == room.data_ptr() + start
    assert_same_bits(made.expanded(), weight.contiguous())
    assert (room[:start] == 7).all()
    assert (room[start + nbytes :] == 7).all()
    with pytest.raises(ValueError, match="takes"):
        encode(weight, 0.1, into=room[start : start + nbytes - 1])
    with pytest.raises(ValueError, match="multiple of 64"):
        encode(weight, 0.1, into=room[start + 1 : start + 1 + nbytes])
    with pytest.raises(ValueError, match="bfloat16"):
        encode(weight.float())
    for wrong in ({"first": 3, "last": 2}, {"into": torch.empty(2, 3)}):
        with pytest.raises(ValueError, match="rows"):
            made.expanded(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", TYPES)
def test_linear_is_no_further_from_the_truth_than_torchs(build: str, dtype: torch.dtype) -> None:
    ours, torchs = [], []
    for out, inputs in SHAPES:
        weight = torch.randn(out, inputs).bfloat16()
        weight[:, ::50] *= 2.0**-20  # exceptions
        made = encoded(weight)
        for rows in (1, 2, 3, 4, 5, 8, 16):
            x = torch.randn(rows, inputs).to(dtype)
            bias = torch.randn(out).to(dtype) if rows % 2 else None
            true = x.double() @ weight.double().T + (0 if bias is None else bias.double())
            y = linear(x, made, bias)
            assert y.dtype == dtype
            assert y.shape == true.shape
            error = (y.double() - true).abs()
            size = x.double().abs() @ weight.double().abs().T
            info = torch.finfo(dtype)
            rounding = true.abs() * info.eps / 2 + info.smallest_normal * info.eps
            assert (error <= 1.01 * rounding + 2.0**-24 * (inputs / 8 + 16) * size).all(), (out, inputs, rows)
            ours.append(error.flatten())
            torchs.append((functional.linear(x, weight.to(dtype), bias).double() - true).abs().flatten())
    if dtype != torch.float16:  # that has no room for the weights
        mine, theirs = torch.cat(ours), torch.cat(torchs)
        assert mine.mean() <= theirs.mean() * 1.001
        assert mine.max() <= theirs.max() * (1.0 if dtype == torch.bfloat16 else 1.5)


def test_exceptions_of_any_size_are_multiplied_too(build: str) -> None:
    weight = kinds()["outliers"]
    weight[3, 7] = torch.inf
    made = encoded(weight)
    assert made.exceptions > 0
    for rows in (1, 3):
        x = torch.randn(rows, weight.shape[1])
        true = x.double() @ weight.double().T
        torch.testing.assert_close(linear(x, made).double(), true, rtol=1e-4, atol=1e-3)
    weight[3, 7] = torch.nan
    assert linear(torch.ones(weight.shape[1]), encoded(weight)).isnan().nonzero().flatten().tolist() == [3]


def test_an_infinite_activation_gives_what_torch_gives(build: str) -> None:
    weight = torch.ones(4, 256, dtype=torch.bfloat16)
    weight[1, 100], weight[2, 100], weight[3, 7] = 2.0**-100, 0, -(2.0**-90)
    made = encoded(weight)
    assert made.exceptions == 2
    x = torch.ones(3, 256)
    x[1, 100] = torch.inf
    x[2, 7] = -torch.inf
    expected = functional.linear(x, weight.float())
    torch.testing.assert_close(linear(x, made), expected, equal_nan=True)
    torch.testing.assert_close(linear(x[1], made), expected[1], equal_nan=True)


def test_many_rows_are_multiplied_tile_by_tile(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outsize.kernels.cpu.linear.SCRATCH_BYTES", 40_000)
    weight, bias = torch.randn(70, 1000).bfloat16(), torch.randn(70)
    made = encoded(weight)
    for dtype, rows in itertools.product(TYPES, (17, 40)):
        x = torch.randn(rows, 1000).to(dtype)
        y = linear(x, made, bias.to(dtype))
        assert y.dtype == dtype
        true = x.double() @ weight.double().T + bias.to(dtype)
        size = x.double().abs() @ weight.double().abs().T
        assert ((y.double() - true).abs() <= torch.finfo(dtype).eps * (true.abs() + size)).all()


def test_plain_torch_gives_the_bits_that_it_gives_with_the_weight_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    weight, bias = torch.randn(96, 320).bfloat16(), torch.randn(96).bfloat16()
    made = encoded(weight)
    for rows in (1, 5, 30):
        x = torch.randn(rows, 320).bfloat16()
        assert_same_bits(functional.linear(x, made, bias), functional.linear(x, weight, bias))


def test_shapes_and_layouts_are_those_of_linear(build: str) -> None:
    weight, bias = torch.randn(6, 64).bfloat16(), torch.randn(6)
    made = encoded(weight)
    for x in (torch.randn(64), torch.randn(2, 3, 64), torch.randn(64, 4).T, torch.randn(0, 64), torch.randn(3, 7, 64)):
        if x.numel():
            torch.testing.assert_close(linear(x, made, bias), functional.linear(x, weight.float(), bias))
        low = x.bfloat16()
        assert functional.linear(low, made).shape == (*x.shape[:-1], 6)
        assert functional.linear(input=low, weight=made, bias=bias.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="times a weight"):
        linear(torch.randn(2, 63), made)


def test_in_a_module_it_is_a_parameter_and_to_all_else_the_weight_itself() -> None:
    weight = torch.randn(12, 256).bfloat16()
    made = encoded(weight)
    module = nn.Linear(256, 12, bias=False, dtype=torch.bfloat16, device="meta")
    module._parameters["weight"] = nn.Parameter(made, requires_grad=False)
    assert isinstance(module.weight, nn.Parameter)
    assert isinstance(module.weight, Bf12Weight)
    assert (module.weight.shape, module.weight.dtype, module.weight.device.type) == ((12, 256), torch.bfloat16, "cpu")
    x = torch.randn(2, 256).bfloat16()
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            torch.testing.assert_close(module(x), functional.linear(x, weight), rtol=0.01, atol=0.01)
            assert_same_bits(module.weight + 0, weight + 0)
            assert_same_bits(module.weight[3:5].T.contiguous(), weight[3:5].T.contiguous())
            assert_same_bits(module.weight.clone(), weight)
            assert_same_bits(made.to(torch.float32).bfloat16(), weight)
            assert torch.equal(functional.linear(made, weight), functional.linear(weight, weight))
    assert_same_bits(copy.deepcopy(made), weight)
    assert repr(made) == "Bf12Weight((12, 256), exceptions=0)"
    with pytest.raises(OutsizeError, match="no bytes of its own"):
        made.untyped_storage()


def test_gradients_come_from_torch(build: str) -> None:
    x = torch.randn(2, 64, requires_grad=True)
    weight = torch.randn(3, 64).bfloat16()
    functional.linear(x.bfloat16(), encoded(weight)).float().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.float().sum(0).expand(2, 64), rtol=0.02, atol=0.02)


def test_there_is_a_library_or_the_twins_say_so() -> None:
    try:
        load()
    except NoLibrary:
        assert encode(torch.zeros(2, 2, dtype=torch.bfloat16)) is not None
