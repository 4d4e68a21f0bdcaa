"""Choices for the words tasks: the right answer, and those of two other prompts."""

from typing import Any


def with_choices(docs: Any) -> Any:
    """Each document with ``choices``, and in ``label`` which of them is right."""
    answers = list(docs["answer"])

    def choose(doc: dict[str, Any], number: int) -> dict[str, Any]:
        later = answers[number + 1 :] + answers[:number]
        wrong = list(dict.fromkeys(answer for answer in later if answer != doc["answer"]))[:2]
        label = number % 3
        return {"choices": [*wrong[:label], doc["answer"], *wrong[label:]], "label": label}

    return docs.map(choose, with_indices=True)


def without_examples(docs: Any) -> Any:
    """The same with the last line of each prompt alone."""
    return with_choices(docs).map(lambda doc: {"prompt": doc["prompt"].rpartition("\n")[2]})
