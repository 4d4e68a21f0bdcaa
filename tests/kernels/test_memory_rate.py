"""The kernel that reads memory agrees with torch's sum, which is its reference."""

import pytest
import torch

from outsize.kernels.memory_rate import total


@pytest.mark.parametrize("words", [0, 1, 31, 255, 256, 257, 16_384, 16_385, 100_003])
@pytest.mark.parametrize("name", ["auto", "torch"])
def test_every_word_is_read_once(words: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", name)
    numbers = torch.randint(-(1 << 62), 1 << 62, (words,), generator=torch.Generator().manual_seed(words))
    assert total(numbers.view(torch.uint8)) == sum(numbers.tolist()) % (1 << 64)


def test_a_buffer_that_is_not_of_whole_words_is_refused() -> None:
    with pytest.raises(RuntimeError):
        total(torch.zeros(12, dtype=torch.uint8))
