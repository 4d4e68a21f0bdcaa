"""The cost model against published figures, which a design that moves fewer bytes must beat."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "cost_model_check.py"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("cost_model_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_prediction_is_below_the_published_time_and_above_physics(check):
    for row in check.PUBLISHED:
        plan = check.plan_of(row)
        assert plan.fits
        assert plan.predicted.token_s <= row.token_s, row
        resident = sum(group.rest_bytes for group in plan.groups if group.tier.startswith("gpu"))
        assert plan.predicted.token_s >= resident / 672e9
        assert plan.predicted.token_s >= plan.predicted.disk_bytes_per_token / 3e9


def test_the_document_shows_what_the_script_computes(check):
    shown = check.DOCUMENT.read_text().partition(check.MARKS[0])[2].partition(check.MARKS[1])[0]
    assert shown == check.table() + "\n" + check.bloom(), "run scripts/cost_model_check.py --write"
