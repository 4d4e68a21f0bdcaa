"""When each module computes in a forward pass, whose weights are used while it does not, and which are looked up."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

ROWS = (torch.ops.aten.embedding.default, torch.ops.aten.select.int, torch.ops.aten.slice.Tensor)
_WRAPPING = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


class Turns:
    """When each module that owns weights was computing, and whose weights were used while it was not.

    ``spans``: module -> first and last moment of all its calls, counted in calls. ``strays``: names of parameters that
    an operation took while their module was not computing: code of the model reaches for them past the module.
    ``looked_up``: names of parameters of which no operation took more than rows.
    """

    def __init__(self, model: nn.Module) -> None:
        self.spans: dict[int, tuple[int, int]] = {}
        self.strays: set[str] = set()
        self._rows: set[str] = set()
        self._wholes: set[str] = set()
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

    @property
    def looked_up(self) -> set[str]:
        """See the class."""
        return self._rows - self._wholes

    def note(self, func: Any, args: Any, kwargs: Any) -> None:
        """Looks at the arguments of one operation."""
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, nn.Parameter) or (isinstance(leaf, torch.Tensor) and leaf._is_view()):
                name, owner = self._owners.get(leaf.untyped_storage()._cdata, ("", 0))
                if name and func not in _WRAPPING:
                    (self._rows if func in ROWS or leaf._is_view() else self._wholes).add(name)
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
