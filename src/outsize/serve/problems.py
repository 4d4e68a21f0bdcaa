"""What a client is told when something is wrong: a status, one line, and the shapes that client libraries know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from outsize.engine.service import Busy, Closing
from outsize.errors import DamagedModel, DoesNotFit, OutsizeError, UsageError, one_line

ANTHROPIC = "/v1/messages"
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}


class Problem(Exception):
    """An answer other than the one that was asked for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_s: float | None = None,
    ) -> None:
        self.status = status
        self.message = one_line(message)
        self.param = param
        self.code = code
        self.retry_s = retry_s
        super().__init__(self.message)

    @property
    def headers(self) -> dict[str, str]:
        """What goes beside the body."""
        if self.retry_s is None:
            return {}
        seconds = max(math.ceil(self.retry_s), 1)
        return {"Retry-After": str(seconds), "X-Predicted-Seconds": f"{self.retry_s:.3f}"}

    def body(self, path: str) -> Mapping[str, Any]:
        """The JSON of OpenAI's errors, or of Anthropic's on their route."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        if path.startswith(ANTHROPIC):
            kind = "overloaded_error" if self.status == 503 else "api_error" if self.status >= 500 else kind
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def problem_of(error: OutsizeError) -> Problem:
    """The problem that an error of the package is for a client."""
    match error:
        case Busy():
            return Problem(503, str(error), code="busy", retry_s=error.seconds)
        case Closing():
            return Problem(503, str(error), code="closing", retry_s=10.0)
        case DoesNotFit():
            return Problem(400, str(error), code="does_not_fit")
        case UsageError():
            return Problem(400, str(error))
        case DamagedModel():
            return Problem(500, str(error), code="damaged_model")
    return Problem(500, str(error))
