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
"""

from __future__ import annotations


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
        parts = [self.what]
        if self.need or self.have:
            parts.append(
                ", ".join(f"{word} {text}" for word, text in (("need", self.need), ("have", self.have)) if text)
            )
        if self.remedy:
            parts.append(f"try: {self.remedy}")
        return "; ".join(parts)


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
