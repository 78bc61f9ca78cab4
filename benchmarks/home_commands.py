"""Spoken commands of a home, and the JSON a program needs: chats to teach, problems to measure on,
and answers to read.

    python benchmarks/home_commands.py write home pocketlm run recipes/specialize.py models/BASE
    --chats home/chats.jsonl --suite home/exam.jsonl --out runs/home ... python
    benchmarks/home_commands.py show runs/home

`write` makes home/chats.jsonl (600 chats) and home/exam.jsonl (120 commands: a third in sentences
and rooms that the chats have, put together anew, a third about rooms that no chat names, a third in
sentences that no chat has). `show` prints five answers of the first model and the last, the table,
and how the files agree.
"""

import argparse
import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pocketlm.report.evaluation import first_suite, read_evaluation

ASK = (
    "Turn this command into JSON with device, room, action, value and time, as far as it says "
    "them.\n"
)
ROOMS = (
    "kitchen",
    "bedroom",
    "bathroom",
    "hall",
    "office",
    "nursery",
    "cellar",
    "garage",
    "dining room",
    "guest room",
)
NEW_ROOMS = ("attic", "library", "greenhouse", "workshop", "laundry room")
# device: (sentence, action, values), {r} the room, {v} the value
DEVICES = {
    "lamp": (
        ("switch on the {r} lamp", "on", None),
        ("switch off the {r} lamp", "off", None),
        ("turn the lamp in the {r} on", "on", None),
        ("turn the lamp in the {r} off", "off", None),
        ("dim the {r} lamp to {v} percent", "set", range(5, 100, 5)),
    ),
    "heating": (
        ("heat the {r} to {v} degrees", "set", range(15, 26)),
        ("set the heating in the {r} to {v} degrees", "set", range(15, 26)),
        ("turn off the heating in the {r}", "off", None),
    ),
    "blinds": (
        ("open the {r} blinds", "open", None),
        ("close the blinds in the {r}", "close", None),
        ("lower the {r} blinds to {v} percent", "set", range(10, 100, 10)),
    ),
    "radio": (
        ("play the radio in the {r}", "on", None),
        ("stop the {r} radio", "off", None),
        ("set the {r} radio to volume {v}", "set", range(1, 11)),
    ),
}
NEW_SENTENCES = {
    "lamp": (("I need light in the {r}", "on", None), ("make it dark in the {r}", "off", None)),
    "heating": (("the {r} should have {v} degrees", "set", range(15, 26)),),
    "blinds": (("let the sun into the {r}, blinds up", "open", None),),
    "radio": (("some radio in the {r}, volume {v}", "set", range(1, 11)),),
}
POLITE = ("{c}", "please {c}", "could you {c}", "hey, {c}", "{c}, please", "would you {c}")
SHOWN = 100  # characters of an answer
HOURS = (
    "twelve",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("write", "show"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    {"write": write, "show": show}[arguments.what](arguments.folder)


def write(folder: Path) -> None:
    """chats.jsonl and exam.jsonl; no command stands in both."""
    folder.mkdir(parents=True, exist_ok=True)
    chats = dict(islice(commands(DEVICES, ROOMS, random.Random(1)), 600))
    parts = {
        "known": commands(DEVICES, ROOMS, random.Random(2)),
        "new rooms": commands(DEVICES, NEW_ROOMS, random.Random(3)),
        "new sentences": commands(NEW_SENTENCES, ROOMS, random.Random(4)),
    }
    exam = [
        {"family": family, "prompt": ASK + said, "answer": meant}
        for family, pairs in parts.items()
        for said, meant in islice(((said, meant) for said, meant in pairs if said not in chats), 40)
    ]
    for name, rows in (
        ("chats", [{"prompt": ASK + said, "response": meant} for said, meant in chats.items()]),
        ("exam", exam),
    ):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(rows)} rows")


def commands(
    devices: dict, rooms: tuple[str, ...], random: random.Random
) -> Iterator[tuple[str, str]]:
    """(what is said, the JSON that it means), without end and without repeats."""
    seen = set()
    while True:
        device = random.choice(list(devices))
        sentence, action, values = random.choice(devices[device])
        room, value = random.choice(rooms), random.choice(values) if values else None
        meant = {"device": device, "room": room, "action": action}
        said = sentence.format(r=room, v=value)
        if value is not None:
            meant["value"] = value
        if random.random() < 0.6:
            words, time = a_time(random)
            said, meant["time"] = f"{said} {words}", time
        said = random.choice(POLITE).format(c=said)
        if said not in seen:
            seen.add(said)
            yield said, json.dumps(meant)


def a_time(random: random.Random) -> tuple[str, str]:
    """A time of day in words, and on a 24-hour clock."""
    hour, evening = random.randrange(1, 12), random.random() < 0.5
    minute, words = random.choice(
        (
            (0, "at {h}"),
            (15, "at quarter past {h}"),
            (30, "at half past {h}"),
            (45, "at quarter to {n}"),
        )
    )
    half = (
        "in the evening"
        if evening and hour >= 5
        else "in the afternoon"
        if evening
        else "in the morning"
    )
    spoken = f"{words.format(h=HOURS[hour], n=HOURS[(hour + 1) % 12])} {half}"
    return spoken, f"{hour + 12 * evening:02d}:{minute:02d}"


def show(run: Path) -> None:
    """What stands in runs/<run>: five answers before and after, the models' scores, sizes and
    speeds, the files' agreement.
    """
    evaluation = read_evaluation(run / "evaluation")
    suite, models = first_suite(evaluation), evaluation["models"]
    answers = {
        label: answers_of(run / "evaluation" / "transcripts" / f"{label}.{suite}.jsonl")
        for label in models
    }
    last = list(models)[-1]
    for prompt in list(answers[last])[::25][:5]:
        print(f"\n{prompt.removeprefix(ASK)}")
        for label in ("base", last):
            row = answers[label][prompt]
            print(
                f"  {label:<11} {'right' if row['correct'] else 'wrong'}: "
                f"{shortened(row['completion'])}"
            )
    print(
        f"\n{'model':<12}{'solved':>8}"
        + "".join(f"{family:>15}" for family in models[last]["suites"][suite]["problems"])
        + "      MB  tokens/s"
    )
    for label, model in models.items():
        figures = model["suites"][suite]
        parts = "".join(
            f"{counts['solved'] / counts['total']:>15.0%}"
            for counts in figures["problems"].values()
        )
        print(
            f"{label:<12}{figures['value']:>8.1%}{parts}{model['bytes'] / 1e6:>8.1f}"
            f"{model['tokens_per_second']:>10.0f}"
        )
    constant = evaluation["suites"][suite]["constant_answer"]
    print(f"{'constant':<20}" + "".join(f"{rate:>15.0%}" for rate in constant.values()))
    for file, found in json.loads((run / "files" / "export.json").read_text())["agreement"].items():
        print(
            f"{file}: {found['top_token']:.2%} of {found['tokens']} top tokens as the model, KL "
            f"{found['kl']:.2g} nats"
        )
    seconds = {
        file.parent.name: json.loads(file.read_text())["seconds"]
        for file in sorted(run.glob("*/stage.json"))
    }
    print(
        "seconds: "
        + ", ".join(f"{name} {took:.0f}" for name, took in seconds.items())
        + f"; together {sum(seconds.values()):.0f}"
    )


def shortened(answer: str) -> str:
    line = " ".join(answer.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} ... ({len(answer)} characters)"


def answers_of(file: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {row["prompt"]: row for row in rows}


if __name__ == "__main__":
    main()
