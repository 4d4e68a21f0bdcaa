"""A made-up NVML: cards are dictionaries of what they answer."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from machine.fake_host import GIB


class NVMLError(Exception):
    pass


class FakeNvml:
    """Answers what its cards know and refuses the rest, as the binding does."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __init__(self, *cards: dict[str, Any]) -> None:
        self.cards = cards
        self.running = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.running = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len([card for card in self.cards if not card["UUID"].startswith("MIG")])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> dict[str, Any]:  # noqa: N802
        for card in self.cards:
            if card["UUID"] == uuid:
                return card
        raise NVMLError

    def nvmlDeviceGetMaxClockInfo(self, card: dict[str, Any], clock: int) -> int:  # noqa: N802
        if "clocks" not in card:
            raise NVMLError
        return int(card["clocks"][clock])

    def __getattr__(self, name: str) -> Callable[[dict[str, Any]], Any]:
        def answer(card: dict[str, Any]) -> Any:
            try:
                return card[name.removeprefix("nvmlDeviceGet")]
            except KeyError:
                raise NVMLError from None

        return answer


def card(uuid: str, name: str | bytes = "NVIDIA TITAN RTX", free: int = 23 * GIB, **more: Any) -> dict[str, Any]:
    return {"UUID": uuid, "Name": name, "MemoryInfo": SimpleNamespace(total=24 * GIB, free=free), **more}
