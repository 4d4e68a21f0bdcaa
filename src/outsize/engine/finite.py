"""Logits that are no numbers: they end a generation at once, with the layer where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import LogitsProcessor

from outsize.errors import OutsizeError

NOT_FINITE = "the model's logits are not finite"
REMEDY = "check the weights (outsize verify, or download again); a float16 model may need bfloat16 or float32"


class NotFinite(OutsizeError):
    """The model computes no numbers."""

    def at(self, layer: str) -> NotFinite:
        """The same with the name of the first layer whose output is not finite."""
        return NotFinite(f"{self.what}, first in {layer}" if layer else self.what, remedy=self.remedy)


class Finite(LogitsProcessor):  # type: ignore[misc]
    """Passes scores [rows, vocabulary] on. Raises NotFinite where a row has none that is a number."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores."""
        if not bool(torch.isfinite(scores.max(dim=-1).values).all()):
            raise NotFinite(NOT_FINITE, remedy=REMEDY)
        return scores


def first_bad_layer(model: Any, inputs: Mapping[str, Any]) -> str:
    """The name of the first module of the prompt's forward pass whose output is not finite; "" if all are."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(module: Any, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            numbers = isinstance(first, torch.Tensor) and first.is_floating_point()
            if numbers and not found and not bool(torch.isfinite(first).all()):
                found.append(name)

        return look

    hooks = [model.get_submodule(unit.name).register_forward_hook(watch(unit.name)) for unit in _units(model)]
    try:
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=1, num_return_sequences=1)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):  # what is found by then is what can be said
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""


def _units(model: Any) -> list[Any]:
    names = dict(model.named_modules())
    return [module for module in model.outsize.spec.modules if module.name in names]
