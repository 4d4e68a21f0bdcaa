"""Sequences that wait for their turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from outsize.engine.answer import Answer, Failed
from outsize.engine.scheduler import CANCELLED


@dataclass(slots=True)
class Pending:
    """Sequences that wait, by client: the clients take turns, each client's own come in their order."""

    clients: OrderedDict[str, deque[Answer]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return sum(map(len, self.clients.values()))

    def __iter__(self) -> Iterator[Answer]:
        for answers in list(self.clients.values()):
            yield from list(answers)

    def add(self, client: str, answers: Sequence[Answer]) -> None:
        """Puts a client's sequences behind those that it has asked for before."""
        self.clients.setdefault(client, deque()).extend(answers)

    def first(self) -> Answer | None:
        """Whose turn it is; those that nobody wants any more are passed over."""
        for client in list(self.clients):
            answers = self.clients[client]
            while answers and answers[0].cancelled:
                answers.popleft().tell(Failed(CANCELLED))
            if answers:
                return answers[0]
            del self.clients[client]
        return None

    def take(self) -> None:
        """The first has begun: the next client's turn."""
        client, answers = next(iter(self.clients.items()))
        answers.popleft()
        del self.clients[client]
        if answers:
            self.clients[client] = answers
