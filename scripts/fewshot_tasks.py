"""The few-shot tasks of the bundled model, and the line between what it was trained on and what it is asked.

A task maps a word (or a short sequence) to an answer. A prompt shows two to five solved lines and one open line:

    cat -> CAT
    house -> HOUSE
    bird ->

and the answer is the rest of that line, from the space to the newline.

Nothing here is random by itself: every draw comes from the `random.Random` that is passed in, so a seed gives the same
prompts everywhere. What is held out follows from the text alone (a checksum), so no list has to be kept:

- a *word* is held out when `word_is_held_out` says so; training never sees it, in no task, not even as an example;
- tasks over closed sets (letters, weekdays, months, sequences) have too few items for that: there a *prompt* is held
  out, by all its lines, and training never sees those lines in that order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random

ARROW = "->"
VOWELS = "aeiou"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)

# Common nouns with a regular plural; a share of the draws, so that prompts people would type are at home.
NOUNS = tuple(
    """
    apple arm army baby bag ball band bank basket beach bean bear bed bee bell belt bench berry bike bird boat body
    bone book boot bottle bowl box boy brain branch bread brick bridge brush bucket bus bush butter button cable
    cake camera camp candle candy cap captain car card carpet cart castle cat cave chain chair cheese cherry chest
    chicken church circle city class clock cloud coach coat coin color copy corner cotton country cousin cover cow
    crab cream crown cup curtain dance day desk diary dinner dish doctor dog doll door dragon drawer dream dress
    drink drum duck ear earth egg engine eye face factory family farm father feather fence field finger fire flag
    floor flower fly forest fork fox friend frog fruit game garden gate ghost gift girl glass glove goat grape grass
    guest guitar hair hall hammer hand harbor hat head heart hill honey horse hospital hotel hour house ice insect
    island jacket jar jelly job judge juice jungle key king kitchen kite kitten ladder lady lake lamp lawyer leg
    lemon lesson letter lily lion lip lock lunch machine map market mask match meal melon metal mirror money monkey
    month moon morning mother mountain mouth nail name nation neck needle nest night nose number nurse ocean office
    onion orange oven owl page paint palace pan paper parent park party path peach pear pen pencil penny pepper
    picture pie pig pillow pilot pin pipe planet plant plate pocket poem pond pony pot potter prince problem puppy
    purse queen question rabbit radish rain rat ribbon rice ring river road robot rock room rope rose ruler sail
    salad salt sand school sea season seat seed ship shirt shoe shop shower sister skirt sky snake snow soap sock
    song soup spider spoon sport spring square squirrel stair stamp star station stone store storm story street
    student sugar summer sun swan sweater swing table tail tank taxi teacher temple tent ticket tiger toe tongue
    tool tooth tower town toy train tray tree truck trumpet turkey turtle uncle valley vase village violin wagon
    wall watch water wave week whale wheel whistle wind window wing winter witch word worker world worm yard year
    zebra
    """.split()
)
_NO_PLURAL = frozenset("tooth bus money".split())  # irregular, or no plural that a rule would give

# The words of the examples and of the demo: always held out, so that what is shown is always unseen.
SHOWN = frozenset(
    "bird river planet window castle garden pencil tiger cherry fox lemon monkey puppy silver robot".split()
)

HELD_OUT_SHARE = 8  # one word in eight, one closed-set prompt in eight

_ONSETS = (
    "b c d f g h j k l m n p r s t v w x y z bl br ch cl cr dr fl fr gl gr pl pr qu sc sh sk sl sm sn sp st sw th tr wh"
).split()
_NUCLEI = "a e i o u a e i o u a e i o u ai ea ee oa oo ou ie".split()
_CODAS = "b d g k l m n p r s t x y ch ck ft ll ld lt mp nd ng nk nt rd rk rn rt sh sk ss st th tch".split()


def checksum(text: str) -> int:
    """A fixed number from a text; unlike `hash`, the same in every process."""
    return zlib.crc32(text.encode())


def word_is_held_out(word: str) -> bool:
    """Whether training must never see this word (in any case: `Bird` is `bird`)."""
    word = word.lower()
    return word in SHOWN or checksum(word) % HELD_OUT_SHARE == 0


def prompt_is_held_out(lines: tuple[str, ...]) -> bool:
    """Whether training must never see these lines in this order (for tasks over closed sets)."""
    return checksum("\n".join(lines)) % HELD_OUT_SHARE == 0


def plural(word: str) -> str:
    """The regular English plural."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in VOWELS:
        return word[:-1] + "ies"
    return word + "s"


def _has_plural(word: str) -> bool:
    return word not in _NO_PLURAL and not word.endswith(("z", "f", "fe", "o", "i"))


def _following(items: tuple[str, ...]) -> Callable[[str], str]:
    return lambda item: items[(items.index(item) + 1) % len(items)]


def _next_in_sequence(shown: str) -> str:
    """The item after a run of letters or an arithmetic run of numbers, written with spaces between."""
    items = shown.split()
    if items[0] in LETTERS:
        return LETTERS[LETTERS.index(items[-1]) + 1]
    return str(int(items[-1]) + int(items[1]) - int(items[0]))


@dataclass(frozen=True)
class Task:
    """One kind of line. `closed`: too few items to hold words out, so prompts are held out instead."""

    name: str
    answer: Callable[[str], str]
    draw: Callable[[Random], str]  # one item, held out or not
    share: int  # how often training draws it, relative to the others
    closed: bool = False


def pseudo_word(random: Random, shortest: int, longest: int) -> str:
    """A pronounceable word of `shortest` to `longest` letters that most likely does not exist."""
    length = random.randint(shortest, longest)
    word = random.choice(_NUCLEI) if random.random() < 0.15 else ""
    while len(word) < length:
        word += random.choice(_ONSETS) + random.choice(_NUCLEI)
        if random.random() < 0.35:
            word += random.choice(_CODAS)
    if len(word) > length and random.random() < 0.5:
        word = word[len(word) - length :]
    return word[:length]


def _word(shortest: int, longest: int, fits: Callable[[str], bool] = lambda word: True) -> Callable[[Random], str]:
    """A drawer of nouns (one in four), letter strings (one in eight) and pseudo-words of that many letters."""
    nouns = tuple(noun for noun in NOUNS if shortest <= len(noun) <= longest and fits(noun))

    def draw(random: Random) -> str:
        while True:
            kind = random.random()
            if kind < 0.25:
                return random.choice(nouns)
            if kind < 0.375:
                word = "".join(random.choices(LETTERS, k=random.randint(shortest, longest)))
            else:
                word = pseudo_word(random, shortest, longest)
            if fits(word):
                return word

    return draw


def _draw_plural(random: Random) -> str:
    """Words for the plural, the rarer endings (-es, -ies) as often as the plain one."""
    plain, others = _word(3, 7, _has_plural), ("y", "x", "s", "ch", "sh", "ay", "ey")
    word = plain(random)
    if random.random() < 0.4:
        ending = random.choice(("y", "y", *others))
        word = word[: 7 - len(ending)] + ending
    return word


def _draw_number(random: Random) -> str:
    return str(random.randrange(10 ** random.choice((1, 2, 2, 3))))


def _draw_sequence(random: Random) -> str:
    if random.random() < 0.5:
        first = random.randrange(len(LETTERS) - 3)
        return " ".join(LETTERS[first : first + 3])
    step, first = random.choice((1, 1, 2)), random.randrange(10 if random.random() < 0.5 else 30)
    return " ".join(str(first + step * i) for i in range(3))


def _no_mirror(word: str) -> bool:
    return word != word[::-1]


def _some_vowels(word: str) -> bool:
    return 0 < sum(letter in VOWELS for letter in word) < len(word)


def _lower_word(random: Random) -> str:
    return _LONG(random).upper()


_LONG = _word(3, 8)

TASKS: tuple[Task, ...] = (
    Task("upper", str.upper, _LONG, 3),
    Task("lower", str.lower, _lower_word, 3),
    Task("capital", str.capitalize, _LONG, 3),
    Task("copy", str, _LONG, 3),
    Task("reverse", lambda word: word[::-1], _word(3, 6, _no_mirror), 6),
    Task("double", lambda word: "".join(letter * 2 for letter in word), _word(3, 5), 3),
    Task("first", lambda word: word[0], _LONG, 3),
    Task("last", lambda word: word[-1], _LONG, 3),
    Task("plural", plural, _draw_plural, 5),
    Task("no-vowels", lambda word: "".join(c for c in word if c not in VOWELS), _word(3, 8, _some_vowels), 4),
    Task("count", lambda word: str(len(word)), _LONG, 2),
    Task("next-number", lambda number: str(int(number) + 1), _draw_number, 3),
    Task("next-letter", _following(tuple(LETTERS)), lambda random: random.choice(LETTERS[:-1]), 1, closed=True),
    Task("next-day", _following(WEEKDAYS), lambda random: random.choice(WEEKDAYS), 2, closed=True),
    Task("next-month", _following(MONTHS), lambda random: random.choice(MONTHS), 3, closed=True),
    Task("sequence", _next_in_sequence, _draw_sequence, 2, closed=True),
)


@dataclass(frozen=True)
class Prompt:
    """Solved lines and one more; `lines` are all of them, solved."""

    task: str
    lines: tuple[str, ...]  # each "input -> answer"

    @property
    def shots(self) -> int:
        return len(self.lines) - 1

    @property
    def text(self) -> str:
        """What the model is given: all but the last answer."""
        *shown, asked = self.lines
        return "".join(line + "\n" for line in shown) + asked.split(f" {ARROW}")[0] + f" {ARROW}"

    @property
    def answer(self) -> str:
        """What it must say: a space, the answer, a newline."""
        return self.lines[-1].split(ARROW)[1] + "\n"


def _lines(task: Task, random: Random, count: int, held_out: bool) -> tuple[str, ...]:
    """`count` solved lines over different items, on the asked side of the line that word_is_held_out draws."""
    items: list[str] = []
    while len(items) < count:
        item = task.draw(random)
        if item not in items and (task.closed or word_is_held_out(item) == held_out):
            items.append(item)
    return tuple(f"{item} {ARROW} {task.answer(item)}" for item in items)


def training_prompt(random: Random, length: int) -> Prompt:
    """A prompt for training, of six lines, or as many (three at least) as fit into `length` tokens.

    No held-out word is in it, and no beginning of it is a held-out prompt.
    """
    (task,) = random.choices(TASKS, [task.share for task in TASKS])
    while True:
        lines = _lines(task, random, 6, held_out=False)
        ends = accumulate(len(line) for line in lines)  # in tokens: the arrow is one for two, the newline one more
        lines = lines[: sum(end <= length for end in ends)]
        held_out = task.closed and any(prompt_is_held_out(lines[:end]) for end in range(3, len(lines) + 1))
        if len(lines) >= 3 and not held_out:
            return Prompt(task.name, lines)


def held_out_prompts(seed: int, per_task: int) -> Iterator[Prompt]:
    """Prompts that training cannot have seen, task by task in turn, all different.

    Every word in them is held out, those of the examples too. The weekdays are the first to run out: ValueError.
    """
    random, seen = Random(seed), set[tuple[str, ...]]()
    for index in range(per_task):
        for task in TASKS:
            for _ in range(10_000):
                lines = _lines(task, random, 3 + index % 4, held_out=True)
                if lines not in seen and (not task.closed or prompt_is_held_out(lines)):
                    break
            else:
                raise ValueError(f"no {per_task} different held-out prompts of {task.name}; ask for fewer")
            seen.add(lines)
            yield Prompt(task.name, lines)
