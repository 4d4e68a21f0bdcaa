"""ModelSpec to JSON and back. Modules that differ in their name alone (the blocks) share one entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from outsize.errors import OutsizeError
from outsize.models.formats import Packing
from outsize.models.spec import CacheSpec, ModelSpec, ModuleSpec, Origin, TensorSpec, WorkspaceSpec

# 2: origins; 3: parts; 4: packings; 5: passes without a cache; 6: the workspace leaves the cache out; 7: experts
SCHEMA = 7
ABSOLUTE = "="  # marks a tensor whose name does not start with its module's (a weight tied across modules)


def spec_to_json(spec: ModelSpec) -> str:
    """The JSON text of a spec, stable under equal specs."""
    entries: list[dict[str, Any]] = []
    known: dict[str, list[str]] = {}  # names of modules that are alike
    for module in spec.modules:
        entry = _entry(module)
        alike = json.dumps({**entry, "names": []})
        if alike in known:
            known[alike].append(module.name)
        else:
            known[alike] = entry["names"]
            entries.append(entry)
    in_entries = [name for entry in entries for name in entry["names"]]
    order = [module.name for module in spec.modules]
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "id": spec.id,
        "architecture": spec.architecture,
        "model_type": spec.model_type,
        "encoder_decoder": spec.encoder_decoder,
        "max_positions": spec.max_positions,
        "vocab_size": spec.vocab_size,
        "dtype": spec.dtype,
        "buffer_bytes": spec.buffer_bytes,
        "workspace": [spec.workspace.base, spec.workspace.linear, spec.workspace.square],
        "modules": entries,
    }
    if order != in_entries:
        body["order"] = order
    if spec.resting is not None:
        body["resting"] = [spec.resting.base, spec.resting.linear, spec.resting.square]
    if spec.origins:
        body["origins"] = {name: [origin.copies, *origin.names] for name, origin in spec.origins.items()}
    return json.dumps(body, indent=1) + "\n"


def spec_from_json(text: str) -> ModelSpec:
    """The spec of a JSON text. Raises OutsizeError for a text that is no spec of this schema."""
    try:
        body = json.loads(text)
        if body["schema"] != SCHEMA:
            raise ValueError(f"schema {body['schema']}, not {SCHEMA}")
        modules = {name: _module(entry, name) for entry in body["modules"] for name in entry["names"]}
        return ModelSpec(
            id=body["id"],
            architecture=body["architecture"],
            model_type=body["model_type"],
            encoder_decoder=body["encoder_decoder"],
            max_positions=body["max_positions"],
            vocab_size=body["vocab_size"],
            dtype=body["dtype"],
            buffer_bytes=body["buffer_bytes"],
            workspace=WorkspaceSpec(*body["workspace"]),
            resting=WorkspaceSpec(*body["resting"]) if "resting" in body else None,
            modules=tuple(modules[name] for name in body.get("order", modules)),
            origins={name: Origin(tuple(names), copies) for name, (copies, *names) in body.get("origins", {}).items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise OutsizeError(f"this is no model spec of outsize: {error}") from error


def _entry(module: ModuleSpec) -> dict[str, Any]:
    prefix = f"{module.name}."
    tensors = []
    for tensor in module.tensors:
        short = tensor.name.removeprefix(prefix) if tensor.name.startswith(prefix) else ABSOLUTE + tensor.name
        packing = None if tensor.packing is None else astuple(tensor.packing)
        more: list[Any] = [packing, tensor.span, tensor.matrices]
        while more and more[-1] == (None, 0, 1)[len(more) - 1]:
            more.pop()  # most tensors have none of these
        tensors.append([short, list(tensor.shape), tensor.stored, tensor.runtime, tensor.matmul, tensor.part, *more])
    cache = module.cache
    routed = {"experts": [module.experts, module.per_token]} if module.experts else {}
    return {
        **routed,
        "names": [module.name],
        "role": module.role,
        "stack": module.stack,
        "tied": list(module.tied),
        "cache": [cache.per_token, cache.window, cache.cross_per_token, cache.fixed],
        "tensors": tensors,
    }


def _module(entry: Mapping[str, Any], name: str) -> ModuleSpec:
    tensors = tuple(
        TensorSpec(
            short.removeprefix(ABSOLUTE) if short.startswith(ABSOLUTE) else f"{name}.{short}",
            tuple(shape),
            stored,
            runtime,
            matmul,
            part,
            Packing(*more[0]) if more and more[0] else None,
            *more[1:],
        )
        for short, shape, stored, runtime, matmul, part, *more in entry["tensors"]
    )
    return ModuleSpec(
        name,
        entry["role"],
        entry["stack"],
        tensors,
        CacheSpec(*entry["cache"]),
        tuple(entry["tied"]),
        *entry.get("experts", ()),
    )
