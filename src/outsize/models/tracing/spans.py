"""When each module computes in a forward pass, and whose weights are used while it does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves


class Turns:
    """When each module that owns weights was computing, and whose weights were used while it was not.

    ``spans``: module -> first and last moment of all its calls, counted in calls. ``strays``: names of parameters that
    an operation took while their module was not computing: code of the model reaches for them past the module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.spans: dict[int, tuple[int, int]] = {}
        self.strays: set[str] = set()
        self._clock = 0
        self._active: dict[int, int] = {}
        self._owners: dict[int, tuple[str, int]] = {}
        self._hooks = []
        for prefix, module in model.named_modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    self._owners.setdefault(weight.untyped_storage()._cdata, (f"{prefix}.{name}", id(module)))
            if any(weight is not None for weight in module._parameters.values()):
                self._hooks.append(module.register_forward_pre_hook(self._enter))
                self._hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def note(self, args: Any, kwargs: Any) -> None:
        """Looks at the arguments of one operation."""
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, nn.Parameter) or (isinstance(leaf, torch.Tensor) and leaf._is_view()):
                name, owner = self._owners.get(leaf.untyped_storage()._cdata, ("", 0))
                if owner and not self._active.get(owner):
                    self.strays.add(name)

    def close(self) -> None:
        """Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._clock += 1
        self._active[id(module)] = self._active.get(id(module), 0) + 1
        first, _last = self.spans.get(id(module), (self._clock, 0))
        self.spans[id(module)] = (first, self._clock)

    def _leave(self, module: nn.Module, *_: Any) -> None:
        self._clock += 1
        self._active[id(module)] -= 1
        self.spans[id(module)] = (self.spans[id(module)][0], self._clock)
