"""Answers as models write them, right and wrong, to questions of the six benchmarks' forms.

Drawn from a seed: a question, an option (the right one half of the time), a way to say it. All
questions and answers are written for this purpose; none is a benchmark's.
"""

import random
import string
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

BENCHMARKS = ("videomme", "vsibench", "perceptiontest", "tempcompass", "videommmu", "mmvu")


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to one question, as our functions take it and (`doc`) as lmms-eval's do."""

    benchmark: str
    task: str
    question: str
    options: tuple[str, ...]
    solution: str
    output: str
    form: str
    """How the answer is said: a key of `WAYS`."""
    doc: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Said:
    """What a way of saying it may use."""

    letter: str
    text: str
    other: str
    """Another option's letter."""
    other_text: str
    listing: str
    """All options, a line each, as the prompt shows them."""


CHOICES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "What does the person hold?",
        ("A red umbrella", "A map of the city", "Two bags", "Nothing at all", "A folded newspaper"),
    ),
    ("Which colour is the car?", ("Gray", "Dark blue", "Crimson", "Black", "Amber")),
    (
        "What happens after the bell rings?",
        (
            "The children leave the room",
            "A dog enters",
            "Because of rain, the game ends",
            "Everyone stands up",
            "Doors close",
        ),
    ),
    (
        "Where is the lamp relative to the sofa?",
        ("Left", "Right", "Behind", "In front", "Above"),
    ),
    (
        "Why does the bridge fail?",
        (
            "Resonance with the wind",
            "An overload of cars",
            "Corrosion of cable D",
            "A design flaw in the deck",
            "It does not fail",
        ),
    ),
    ("How many rings are shown?", ("1", "2", "3", "4", "5")),
    (
        "Which vitamin is discussed?",
        ("Vitamin C", "Vitamin K", "Vitamin A", "Vitamin D", "None of these"),
    ),
    (
        "What does the last step show?",
        ("Stirring the soup", "Adding salt", "Chopping a carrot", "Boiling water", "Eating"),
    ),
)
MORE = ("Copper", "Zinc", "Iron", "Nickel", "Silver", "Gold", "Lead", "Tin", "Cobalt", "Titanium")

# Each is a way to say that the answer is `letter`; those of FORMS["no answer"] say none.
Way = Callable[[Said], str]
WAYS: dict[str, tuple[Way, ...]] = {
    "letter": (
        lambda s: s.letter,
        lambda s: f"{s.letter}.",
        lambda s: f"({s.letter})",
        lambda s: f"{s.letter})",
        lambda s: f" {s.letter}\n",
        lambda s: f"**{s.letter}**",
        lambda s: f"{s.letter.lower()}",
        lambda s: f"Option {s.letter}",
        lambda s: f"[{s.letter}]",
        lambda s: f"{s.letter}\n\n",
    ),
    "letter and text": (
        lambda s: f"{s.letter}. {s.text}",
        lambda s: f"{s.letter}. {s.text}.",
        lambda s: f"{s.letter}) {s.text}",
        lambda s: f"({s.letter}) {s.text}",
        lambda s: f"{s.letter}: {s.text}",
        lambda s: f"{s.letter} {s.text}",
        lambda s: f"**{s.letter}. {s.text}**",
        lambda s: f"{s.letter}. {s.text}\nThe other options do not fit.",
        lambda s: f"{s.letter.lower()}. {s.text}",
    ),
    "text": (
        lambda s: s.text,
        lambda s: f"{s.text}.",
        lambda s: s.text.lower(),
        lambda s: f"The answer is {s.text}.",
    ),
    "sentence": (
        lambda s: f"The answer is {s.letter}.",
        lambda s: f"The best answer is: {s.letter}",
        lambda s: f"The correct answer is **{s.letter}**.",
        lambda s: f"The correct option is {s.letter}, {s.text}.",
        lambda s: f"Answer: {s.letter}",
        lambda s: f"My answer is ({s.letter}).",
        lambda s: f"I choose {s.letter}.",
        lambda s: f"I think it is {s.letter}.",
        lambda s: f"It must be option {s.letter}.",
        lambda s: f"{s.letter} is the correct answer.",
        lambda s: f"{s.letter}, because it is seen at the end.",
        lambda s: f"{s.letter} because it is seen at the end.",
        lambda s: f"Therefore, the final answer is: {s.letter}",
        lambda s: f"Therefore, the final answer is: ${s.letter}",
        lambda s: f"The answer is {s.letter} because Adam carries it.",
        lambda s: f"Based on the video, the answer is {s.letter}. Clearly, Bob does it.",
        lambda s: f"the answer is {s.letter.lower()}",
        lambda s: f"I'd say {s.letter}",
        lambda s: f"Looks like {s.letter}.",
        lambda s: f"I would go with option {s.letter}.",
        lambda s: f"{s.letter} seems right.",
        lambda s: f'{{"answer": "{s.letter}"}}',
        lambda s: f"Answer = {s.letter}",
        lambda s: f"-> {s.letter}",
        lambda s: f"I am not sure, maybe {s.letter}.",
        lambda s: f"The most likely answer is {s.letter}.",
        lambda s: f"ANSWER: {s.letter}",
        lambda s: f"{s.letter} ({s.text})",
    ),
    "reasoning": (
        lambda s: f"A man walks in and sits down. Answer: {s.letter}",
        lambda s: f"A woman enters, then the scene ends. So {s.letter}",
        lambda s: f"The clip shows it twice.\nFrame by frame, it moves.\n\n{s.letter}",
        lambda s: f"Option {s.other} is wrong, so it is {s.letter}.",
        lambda s: f"Not {s.other} but {s.letter}.",
        lambda s: f"Between {s.other} and {s.letter} I choose {s.letter}.",
        lambda s: f"{s.letter} fits better than {s.other}.",
        lambda s: f"{s.other}: wrong\n{s.letter}: right",
        lambda s: f"{s.other} is not correct, {s.letter} is",
        lambda s: f"{s.letter}, not {s.other}",
        lambda s: f"It cannot be {s.other}, so the answer is {s.letter}.",
        lambda s: f"The answer is {s.letter}. {s.other} is wrong since nobody does that.",
        lambda s: f"The answer is {s.other}. No, wait, the answer is {s.letter}.",
        lambda s: f"Comparing {s.other} and {s.letter}, the last scene decides. So {s.letter}.",
        lambda s: f"I see a chemical reaction. Therefore, the final answer is: {s.letter}",
        lambda s: f"{s.letter}. {s.text}\n\nExplanation:\n{s.other}. {s.other_text} is not shown.",
    ),
    "tags": (
        lambda s: f"<answer>{s.letter}</answer>",
        lambda s: f"<answer>{s.letter}. {s.text}</answer>",
        lambda s: f"<think>Is it {s.other}? A man walks.</think><answer>{s.letter}</answer>",
        lambda s: f"<think>It is {s.other}.</think>\n{s.letter}",
        lambda s: f"It is {s.other}, I first thought.</think>{s.letter}",
        lambda s: f"<think>maybe {s.other}. <answer>{s.letter}</answer>",
        lambda s: f"<answer>{s.letter}",
        lambda s: f"<answer>\n{s.letter}\n</answer>\n",
        lambda s: f"{s.letter}</s>",
        lambda s: f"{s.letter}<|im_end|>",
        lambda s: rf"\boxed{{{s.letter}}}",
        lambda s: rf"The answer is \boxed{{\text{{{s.letter}}}}}.",
    ),
    "other scripts": (
        lambda s: chr(ord(s.letter) + 0xFEE0),
        lambda s: f"（{chr(ord(s.letter) + 0xFEE0)}）",
        lambda s: f"答案是{s.letter}",
        lambda s: f"答案：{s.letter}。",
        lambda s: f"选{s.letter}",
        lambda s: f"答案是{s.letter}，因为{s.other}不对。",
        lambda s: f"정답은 {s.letter}입니다.",
        lambda s: f"정답: {s.letter}",
        lambda s: f"答えは{s.letter}です。",
        lambda s: f"{s.letter}选项正确",
        lambda s: f"Ответ: {s.letter}",
        lambda s: f"La respuesta es {s.letter}.",
    ),
    "no answer": (
        lambda s: "",
        lambda s: "   ",
        lambda s: "!!!!!!!!",
        lambda s: "I am not sure.",
        lambda s: "A man walks across the street.",
        lambda s: "A person picks up a bag.",
        lambda s: "I cannot see the video.",
        lambda s: "Both of them.",
        lambda s: "None of the above",
        lambda s: "The USA team wins.",
        lambda s: "D-Day is shown.",
        lambda s: "N/A",
        lambda s: f"{s.letter}{s.other}",
        lambda s: f"{s.letter}\n{s.other}",
        lambda s: "As an AI model, I cannot watch it.",
        lambda s: "All of the above",
        lambda s: "Answer:",
        lambda s: "\U0001f600",
        lambda s: "C'est la vie.",
        lambda s: f"{s.letter} or {s.other}",
        lambda s: f"{s.letter} and {s.other}",
        lambda s: f"{s.letter}, {s.other}",
        lambda s: f"{s.letter}/{s.other}",
        lambda s: f"The answer is either {s.letter} or {s.other}.",
        lambda s: f"Not {s.letter}",
        lambda s: f"The answer is not {s.letter}.",
        lambda s: s.listing,
        lambda s: f"<think>The man walks. It may be {s.letter}",
        lambda s: "Z",
        lambda s: "42",
        lambda s: "null",
        lambda s: "的的的的",
        lambda s: "<answer></answer>",
        lambda s: "\u0000\ufffd\u202e",
    ),
}
SHARES = {
    "letter": 5, "letter and text": 4, "text": 2, "sentence": 5, "reasoning": 4, "tags": 4,
    "other scripts": 3, "no answer": 5,
}  # fmt: skip

NUMBERS: dict[str, tuple[Callable[[float, float], str], ...]] = {
    "number": (
        lambda x, y: f"{x:g}",
        lambda x, y: f"{x:.1f}",
        lambda x, y: f" {x:g}\n",
        lambda x, y: f"{x:g}.",
        lambda x, y: f"{x:g} meters",
        lambda x, y: f"{x:g}m",
        lambda x, y: f"about {x:g}",
        lambda x, y: f"~{x:g}",
        lambda x, y: f"**{x:g}**",
        lambda x, y: f"-{x:g}",
    ),
    "number in a sentence": (
        lambda x, y: f"There are {x:g} chairs.",
        lambda x, y: f"There are {x:g} chairs in the {y:g} rooms.",
        lambda x, y: f"The answer is {x:g}.",
        lambda x, y: f"In the {y:g} rooms, the answer is {x:g}.",
        lambda x, y: f"The room is {x:g} square meters large.",
        lambda x, y: f"{y:g} + {x - y:g} = {x:g}",
        lambda x, y: "One can see a sofa, but no size.",
        lambda x, y: f"The one on the left is {x:g} m away.",
    ),
    "number words": (
        lambda x, y: words(x),
        lambda x, y: words(x).capitalize() + " chairs.",
        lambda x, y: f"There are {words(x)} tables.",
        lambda x, y: f"minus {words(x)}",
    ),
    "number otherwise": (
        lambda x, y: f"{1000 * x:,.0f}",
        lambda x, y: f"{x:.2e}",
        lambda x, y: f"{x:g} to {y:g}",
        lambda x, y: f"{x:g}-{y:g}",
        lambda x, y: f"between {x:g} and {y:g}",
        lambda x, y: f"{x:g} or {y:g}",
        lambda x, y: "1/2",
        lambda x, y: ".5",
        lambda x, y: f"B{x:g}",
        lambda x, y: "12:30",
        lambda x, y: f"\u2212{x:g}",
        lambda x, y: "2\u00bd",
        lambda x, y: f"T-{x:g}",
        lambda x, y: f"{x:g} x {y:g} = {x * y:g}",
        lambda x, y: f"{words(x)} to {words(y)}",
    ),
    "tags": (
        lambda x, y: f"<answer>{x:g}</answer>",
        lambda x, y: f"<think>{y:g} at first</think>{x:g}",
        lambda x, y: f"<think>First {y:g}.</think>\n<answer>{x:g} m</answer>",
        lambda x, y: f"I count {y:g}, then <answer>{x:g}</answer>",
        lambda x, y: rf"\boxed{{{x:g}}}",
    ),
    "other scripts": (
        lambda x, y: "".join(chr(ord(c) + 0xFEE0) for c in f"{x:g}"),
        lambda x, y: f"{x:g}個",
        lambda x, y: f"答案是{x:g}米",
        lambda x, y: "".join(chr(0x0660 + int(c)) if c.isdigit() else c for c in f"{x:g}"),
        lambda x, y: "三",
    ),
    "no answer": (
        lambda x, y: "",
        lambda x, y: "  ",
        lambda x, y: "NaN",
        lambda x, y: "inf",
        lambda x, y: "1e999",
        lambda x, y: "I cannot tell.",
        lambda x, y: "several",
        lambda x, y: "!!!!",
        lambda x, y: f"<think>perhaps {x:g}",
    ),
}

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def words(value: float) -> str:
    """A whole number under 1000 in English words, the part after the point dropped."""
    number, ones = int(value), _ONES.split()
    if number >= 100:
        rest = f" and {words(number % 100)}" if number % 100 else ""
        return f"{ones[number // 100]} hundred{rest}"
    if number < 20:
        return ones[number]
    unit = f"-{ones[number % 10]}" if number % 10 else ""
    return _TENS.split()[number // 10 - 2] + unit


YES_NO: dict[str, tuple[Callable[[str, str], str], ...]] = {
    "yes or no": (
        lambda x, y: x,
        lambda x, y: x.capitalize(),
        lambda x, y: f"{x.capitalize()}.",
        lambda x, y: f"{x.capitalize()}, the man does so.",
        lambda x, y: f"{x.upper()}",
        lambda x, y: f" {x}\n",
        lambda x, y: f"**{x.capitalize()}**",
        lambda x, y: f"The answer is {x}.",
        lambda x, y: f"He sits down, so {x}.",
        lambda x, y: f"<answer>{x}</answer>",
        lambda x, y: f"<think>{y}?</think>{x.capitalize()}",
    ),
    "no answer": (
        lambda x, y: "",
        lambda x, y: "Not sure.",
        lambda x, y: "Nothing is dunked.",
        lambda x, y: "North of the house.",
        lambda x, y: "Yes and no.",
        lambda x, y: "Yesterday.",
        lambda x, y: "maybe",
        lambda x, y: "No one is there.",
        lambda x, y: "Not at all.",
        lambda x, y: "true",
        lambda x, y: {"yes": "是的", "no": "不是"}[x],
    ),
}
CAPTIONS: dict[str, tuple[Callable[[str, str, str, str], str], ...]] = {
    "label": (
        lambda label, index, sentence, other: label,
        lambda label, index, sentence, other: f"{label}.",
        lambda label, index, sentence, other: f"{label}: {sentence}",
        lambda label, index, sentence, other: sentence,
        lambda label, index, sentence, other: index,
        lambda label, index, sentence, other: f"{index}.",
        lambda label, index, sentence, other: f"{index}) {sentence}",
        lambda label, index, sentence, other: label.lower(),
        lambda label, index, sentence, other: f" {label}\n",
        lambda label, index, sentence, other: f"The best option is {label}.",
        lambda label, index, sentence, other: f"<answer>{label}</answer>",
        lambda label, index, sentence, other: f"({index})",
        lambda label, index, sentence, other: f"{label} fits better than {other}.",
    ),
    "no answer": (
        lambda label, index, sentence, other: "",
        lambda label, index, sentence, other: f"{label} or {other}",
        lambda label, index, sentence, other: "A man walks.",
        lambda label, index, sentence, other: f"not {label}",
        lambda label, index, sentence, other: "3",
    ),
}
PAIRS = (
    ("A man is walking forward.", "A man is walking backward."),
    ("The sign reads: stop here.", "The sign reads: go on."),
    ("The ball rolls slowly.", "The ball rolls fast."),
)
OPEN = ("12.97", "Gini", "7243000", "0.5", "-3", "A", "['24/7', '3.429', '3.43]")
OPEN_WAYS: tuple[Callable[[str], str], ...] = (
    lambda x: x,
    lambda x: f"The answer is {x}.",
    lambda x: f"Answer: {x}",
    lambda x: f"It adds up to {x} dollars.",
    lambda x: f"We multiply 3 by 4.\nThus the result is {x}",
    lambda x: f"x = {x}",
    lambda x: f"<think>no</think><answer>{x}</answer>",
    lambda x: f"{float(x):,.2f}" if x.replace(".", "").isdigit() else x,
    lambda x: f"the value is {x}, as shown",
    lambda x: f"{x}s and more",
    lambda x: "7.243 million",
    lambda x: "A cat is a dog.",
    lambda x: "",
    lambda x: "I do not know.",
)


def generate(benchmark: str, count: int, seed: int) -> list[Case]:
    """Draw `count` cases of a benchmark."""
    rng = random.Random(f"{benchmark} {seed}")
    return [_DRAW[benchmark](rng) for _ in range(count)]


def _pick(rng: random.Random, ways: dict[str, tuple[Any, ...]]) -> tuple[str, Any]:
    form = rng.choices(list(ways), [SHARES.get(name, 4) for name in ways])[0]
    return form, rng.choice(ways[form])


def _choice(
    rng: random.Random, num_options: int, *, lettered: bool
) -> tuple[str, tuple[str, ...], str, str, str]:
    """A question, its options, the right letter, an answer and its form."""
    question, texts = rng.choice(CHOICES)
    texts = (*texts, *MORE)[:num_options]
    letters = string.ascii_uppercase[:num_options]
    gold = rng.choice(letters)
    letter = gold if rng.random() < 0.5 else rng.choice(letters)
    other = rng.choice([x for x in letters if x != letter])
    lines = [f"{x}. {text}" for x, text in zip(letters, texts, strict=True)]
    said = Said(
        letter, texts[letters.index(letter)], other, texts[letters.index(other)], "\n".join(lines)
    )
    form, way = _pick(rng, WAYS)
    return question, tuple(lines) if lettered else texts, gold, way(said), form


def _videomme(rng: random.Random) -> Case:
    question, options, gold, output, form = _choice(rng, 4, lettered=True)
    facts = ("question_id", "domain", "sub_category", "task_type", "duration", "videoID")
    doc = {**dict.fromkeys(facts, ""), "answer": gold}
    return Case("videomme", "", question, options, gold, output, form, doc)


def _vsibench(rng: random.Random) -> Case:
    if rng.random() < 0.5:
        question, options, gold, output, form = _choice(rng, rng.choice((2, 3, 4)), lettered=True)
        doc = {"question_type": "route_planning", "ground_truth": gold}
        return Case("vsibench", "choice", question, options, gold, output, form, doc)
    value = rng.choice((1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 21.0, 120.0, 1.3, 2.7, 24.6))
    near = value if rng.random() < 0.4 else round(value * rng.choice((0.7, 0.9, 1.1, 1.5, 2)), 1)
    form, way = _pick(rng, NUMBERS)
    doc = {"question_type": "object_counting", "ground_truth": f"{value:g}"}
    output = way(near, float(rng.choice((2, 6, 7))))
    return Case("vsibench", "number", "How many?", (), f"{value:g}", output, form, doc)


def _perceptiontest(rng: random.Random) -> Case:
    question, options, gold, output, form = _choice(rng, 3, lettered=False)
    doc = {"video_name": "", "question": question, "answer_id": str("ABC".index(gold))}
    return Case("perceptiontest", "", question, options, gold, output, form, doc)


def _tempcompass(rng: random.Random) -> Case:
    task = rng.choice(("multi-choice", "yes_no", "caption_matching"))
    if task == "multi-choice":
        question, options, gold, output, form = _choice(rng, rng.choice((3, 4)), lettered=True)
        solution = options[string.ascii_uppercase.index(gold)]
    elif task == "yes_no":
        question, options, solution = "Is the man dunking?", (), rng.choice(("yes", "no"))
        form, way = _pick(rng, YES_NO)
        says = rng.choice(("yes", "no"))
        output = way(says, {"yes": "no", "no": "yes"}[says])
    else:
        word, indices = rng.choice((("Option", "12"), ("Caption", "AB"), ("Sentence", "AB")))
        pair = rng.choice(PAIRS)
        question = "Which fits the video?"
        options = tuple(f"{word} {i}: {text}" for i, text in zip(indices, pair, strict=True))
        solution = rng.choice(options)
        at = rng.randrange(2)
        form, way = _pick(rng, CAPTIONS)
        output = way(f"{word} {indices[at]}", indices[at], pair[at], f"{word} {indices[1 - at]}")
    doc = {
        "task": task, "question": "\n".join((question, *options)), "answer": solution,
        "video_id": "", "dim": "action",
    }  # fmt: skip
    return Case("tempcompass", task, question, options, solution, output, form, doc)


def _videommmu(rng: random.Random) -> Case:
    if rng.random() < 0.8:
        question, options, gold, output, form = _choice(
            rng, rng.choice((4, 5, 10, 11, 14)), lettered=False
        )
        kind = "multiple-choice"
    else:
        question, options, gold, form, kind = (
            "How much is it?",
            (),
            rng.choice(OPEN),
            "open",
            "open",
        )
        said = gold if rng.random() < 0.5 else rng.choice(OPEN)
        output = rng.choice(OPEN_WAYS)(said)
    doc = {"id": "dev_Art_1", "question_type": kind, "options": list(options), "answer": gold}
    return Case("videommmu", kind, question, options, gold, output, form, doc)


def _mmvu(rng: random.Random) -> Case:
    question, options, gold, output, form = _choice(rng, 5, lettered=False)
    doc = {
        "id": "", "video_path": "videos/Art/0.mp4", "question": question,
        "question_type": "multiple-choice", "answer": gold,
        "choices": dict(zip("ABCDE", options, strict=True)),
    }  # fmt: skip
    return Case("mmvu", "", question, options, gold, output, form, doc)


_DRAW: dict[str, Callable[[random.Random], Case]] = {
    "videomme": _videomme,
    "vsibench": _vsibench,
    "perceptiontest": _perceptiontest,
    "tempcompass": _tempcompass,
    "videommmu": _videommmu,
    "mmvu": _mmvu,
}
