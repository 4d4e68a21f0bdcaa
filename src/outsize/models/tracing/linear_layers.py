"""Which modules of a model are Linear layers: a quantised checkpoint's configuration must speak of every one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from outsize.models import tracing


def linear_modules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of all Linear modules of the model that a config.json describes, built on ``meta``.

    Raises UnsupportedModel or DamagedModel as ``architecture.read_config`` does.
    """
    read = tracing.read_config(config)
    with torch.device("meta"):
        model = tracing.model_class(read)._from_config(read)
    return tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
