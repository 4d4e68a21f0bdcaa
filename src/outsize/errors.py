"""Every error that outsize raises on purpose.

    OutsizeError                    exit 1   anything that went wrong and was understood
    |-- UsageError                  exit 2   an option or argument that makes no sense
    |-- DoesNotFit                  exit 3   memory or disk is too small; says need, have and remedy
    |-- DamagedModel                exit 4   a truncated, inconsistent or unreadable model file
    |   |-- UntrustedModel          exit 4   a file that tries to leave its folder or to run code
    |   `-- ModelChanged            exit 4   a file that shrank, vanished or was replaced while in use
    |-- ModelNotFound               exit 1   no such folder, hub id, revision or cached model
    |-- HubUnreachable              exit 1   the hub did not answer, or answered with an error
    `-- UnsupportedModel            exit 1   a model or format that outsize cannot run, by name

Foreign exceptions are translated where they enter, once; the command line turns the tree into exit codes.

Every message is one line of at most MOST_CHARACTERS printable characters, because much of what messages quote (names
of tensors and files, answers of a hub) was written by strangers.
"""

from __future__ import annotations

MOST_CHARACTERS = 500
CUT = " ... "


class OutsizeError(Exception):
    """Base of all errors of this package.

    ``need``, ``have`` and ``remedy`` are optional sentences or quantities; where given, they are part of the message.
    """

    exit_code = 1

    def __init__(self, what: str, *, need: str = "", have: str = "", remedy: str = "") -> None:
        self.what = what
        self.need = need
        self.have = have
        self.remedy = remedy
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        what, need, have, remedy = _bounded([self.what, self.need, self.have, self.remedy])
        parts = [what]
        if need or have:
            parts.append(", ".join(f"{word} {text}" for word, text in (("need", need), ("have", have)) if text))
        if remedy:
            parts.append(f"try: {remedy}")
        return "; ".join(parts)


def one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    """``text`` on one line of at most ``most`` characters: what is not printable is escaped, the middle is left out."""
    if len(text) > 2 * most:  # nothing else would be seen of it, and escaping megabytes takes its time
        text = f"{text[:most]}{text[-most:]}"
    line = "".join(c if c.isprintable() else _escaped(c) for c in text)
    if len(line) <= most:
        return line
    head = (most - len(CUT)) * 2 // 3
    return f"{line[:head]}{CUT}{line[len(line) - (most - len(CUT) - head) :]}"


def said(error: BaseException) -> str:
    """What a foreign error says, on one short line, or its class where it says nothing."""
    return one_line(" ".join(str(error)[:10_000].split()) or type(error).__name__, 200)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _bounded(texts: list[str]) -> list[str]:
    """The texts on one line each; the longest are cut until all together are short enough for a message."""
    lines = [one_line(text) for text in texts]
    most = MOST_CHARACTERS - len("; need , have ; try: ")
    while (excess := sum(map(len, lines)) - most) > 0:
        longest = max(range(len(lines)), key=lambda index: len(lines[index]))
        others = sorted(map(len, lines))[-2]
        lines[longest] = one_line(lines[longest], max(len(lines[longest]) - excess, others - 1, most // len(lines)))
    return lines


class UsageError(OutsizeError):
    """An option, argument or value that makes no sense."""

    exit_code = 2


class DoesNotFit(OutsizeError):
    """The request needs more memory or disk than there is; ``shortfall_bytes`` says by how much, where known."""

    exit_code = 3

    def __init__(
        self, what: str, *, need: str = "", have: str = "", remedy: str = "", shortfall_bytes: int | None = None
    ) -> None:
        self.shortfall_bytes = shortfall_bytes
        super().__init__(what, need=need, have=have, remedy=remedy)


class DamagedModel(OutsizeError):
    """A model file that is truncated, inconsistent or unreadable."""

    exit_code = 4


class UntrustedModel(DamagedModel):
    """A model file that tries to leave its folder, or to construct anything but tensors."""


class ModelChanged(DamagedModel):
    """A model file that shrank, vanished or was replaced while it was in use."""


class ModelNotFound(OutsizeError):
    """No such folder, hub id, revision or cached model."""


class HubUnreachable(OutsizeError):
    """The hub did not answer, or answered with an error."""


class UnsupportedModel(OutsizeError):
    """A model or format that cannot be run, named."""
