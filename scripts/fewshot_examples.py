"""Writes the rows of the few-shot tasks in examples/tasks: `python scripts/fewshot_examples.py`.

Every word in them, those of the examples too, was held out when the bundled model was trained. The same every time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fewshot_tasks import TASKS, plural, word_is_held_out

TARGET = Path(__file__).parents[1] / "examples" / "tasks"
EXAMPLES, TEST = 18, 48
ANSWERS = {task.name: task.answer for task in TASKS}
ROWS: dict[str, Callable[[str], dict[str, Any]]] = {
    "count": lambda word: {"word": word, "letters": ANSWERS["count"](word)},
    "no-vowels": lambda word: {"word": word, "rest": ANSWERS["no-vowels"](word)},
    "plural": lambda word: {
        "word": word,
        "forms": [word, word + "s", word + "es", word[:-1] + "ies"],
        "plural": plural(word),
    },
}


def words(name: str) -> tuple[list[str], list[str]]:
    """Different words for a task: examples, of which no answer of `count` has more than its share, and test rows."""
    draw = next(task.draw for task in TASKS if task.name == name)
    random, most = Random(f"examples of {name}"), -(-EXAMPLES // 6) if name == "count" else EXAMPLES
    examples, test = dict[str, None](), dict[str, None]()
    while len(test) < TEST or len(examples) < EXAMPLES:
        word = draw(random)
        if not word_is_held_out(word) or word in examples or word in test:
            continue
        alike = sum(ANSWERS[name](word) == ANSWERS[name](other) for other in examples)
        if len(examples) < EXAMPLES and alike < most:
            examples[word] = None
        elif len(test) < TEST:
            test[word] = None
    return list(examples), list(test)


def main() -> None:
    """Two files for each task."""
    for name, row in ROWS.items():
        for kind, found in zip(("examples", "test"), words(name), strict=True):
            (TARGET / f"{name}.{kind}.jsonl").write_text("".join(json.dumps(row(word)) + "\n" for word in found))


if __name__ == "__main__":
    main()
