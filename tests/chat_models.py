"""The bundled model with a chat template, in a folder of the test's own."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

DEMO = Path(str(resources.files("outsize"))) / "demo_model"
# Examples are one user's turns and answers: "a -> A" and so on, the last of them open.
TEMPLATE = """{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('no role ' + message.role) -}}
{%- endif -%}
{%- if message.role == 'user' -%}{{- message.content + ' ->' -}}
{%- else -%}{{- ((message.content or '') | trim) + '\n' -}}{%- endif -%}
{%- endfor -%}"""
TALK = [
    {"role": "system", "content": "mojanago -> MOJANAGO"},
    {"role": "user", "content": "dish"},
    {"role": "assistant", "content": " DISH"},
    {"role": "user", "content": "jift"},
]
AS_TEXT = "mojanago -> MOJANAGO\ndish ->DISH\njift ->"


def chat_model(folder: Path, template: str = TEMPLATE, **settings: Any) -> Path:
    """Writes the model. ``settings``: more of tokenizer_config.json."""
    shutil.copytree(DEMO, folder)
    (folder / "chat_template.jinja").write_text(template)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return folder
