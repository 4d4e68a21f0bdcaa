from __future__ import annotations

import pytest

from outsize.errors import DamagedModel
from outsize.models.dtypes import dtype_bytes


def test_sizes_by_torchs_names():
    assert [dtype_bytes(name) for name in ("float32", "bfloat16", "int8")] == [4, 2, 1]


def test_a_type_nobody_knows_is_refused():
    with pytest.raises(DamagedModel, match="float3"):
        dtype_bytes("float3")
