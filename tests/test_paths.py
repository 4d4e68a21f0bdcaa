from pathlib import Path

import pytest

from outsize.paths import hub_cache, outsize_cache


@pytest.mark.parametrize(
    ("environ", "ours", "hubs"),
    [
        ({"HOME": "/h"}, "/h/.cache/outsize", "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/outsize", "/x/huggingface/hub"),
        ({"OUTSIZE_CACHE": "/o", "HF_HOME": "/hf", "HOME": "/h"}, "/o", "/hf/hub"),
        ({"HF_HUB_CACHE": "/hub", "HF_HOME": "/hf", "XDG_CACHE_HOME": "/x"}, "/x/outsize", "/hub"),
        ({}, str(Path.home() / ".cache/outsize"), str(Path.home() / ".cache/huggingface/hub")),
    ],
)
def test_folders(environ: dict[str, str], ours: str, hubs: str) -> None:
    assert outsize_cache(environ) == Path(ours)
    assert hub_cache(environ) == Path(hubs)
