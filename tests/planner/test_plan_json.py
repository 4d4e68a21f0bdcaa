"""The JSON of a plan."""

import json

from planner.shapes import GIB, decoder, gpu, machine

from outsize.planner.advice import Advice
from outsize.planner.plan_json import advice_to_json, plans_to_json
from outsize.planner.planner import choose, make_request, plan_all, plan_one


def test_the_object_has_what_the_interface_names_and_survives_json():
    spec, here = decoder(4), machine(4 * GIB, gpu(0, 2 * GIB))
    request = make_request(spec, context=128)
    plans = plan_all(spec, here, request)
    answer = plans_to_json(spec, here, request, plans, choose(plans))
    assert json.loads(json.dumps(answer)) == answer
    assert answer["schema"] == 1
    named = {"id", "architecture", "parameters", "dtype", "weight_bytes", "blocks", "kv_bytes_per_token"}
    assert named | {"active_parameters"} == set(answer["model"])
    assert answer["model"]["parameters"] == spec.parameters
    assert [device["name"] for device in answer["machine"]["devices"]] == ["gpu0", "ram", "disk"]
    assert answer["request"] == {"context": 128, "batch": 1, "prompt": 128}
    assert answer["best"] == 0
    for plan, shown in zip(plans, answer["plans"], strict=True):
        assert {"weights", "fits", "shortfall_bytes", "placement", "devices", "predicted"} <= set(shown)
        row = shown["placement"][0]
        named = {"module", "bytes", "home", "compute", "format", "residency", "tensors", "reason"}
        assert named | {"experts", "use"} == set(row)
        named = {"first_token_s", "token_s", "bottleneck", "disk_bytes_per_token"}
        assert named | {"expert_hit_rate"} == set(shown["predicted"])
        assert shown["devices"]["ram"]["total_bytes"] == plan.usage["ram"].total_bytes
        assert {"weights_bytes", "kv_bytes", "workspace_bytes", "capacity_bytes"} <= set(shown["devices"]["gpu0"])


def test_advice_is_the_change_and_what_comes_of_it():
    spec, here = decoder(4, 1024), machine(GIB, disk_rate=1e9)
    plan = plan_one(spec, here, make_request(spec, context=128))
    advice = Advice("weights in int8", "--weights int8", plan)
    shown = json.loads(json.dumps(advice_to_json(advice)))
    assert (shown["change"], shown["options"], shown["weights"]) == ("weights in int8", "--weights int8", "native")
    assert shown["predicted"]["token_s"] == plan.predicted.token_s
