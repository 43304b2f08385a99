"""Every note is explained in docs/files.md."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCES = "\n".join(path.read_text() for path in sorted((ROOT / "strive").rglob("*.py")))
PAGE = (ROOT / "docs/files.md").read_text()


def rows_below(heading: str) -> set[str]:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_every_note_is_explained() -> None:
    notes = set(re.findall(r'notes\.append\(\s*"(\w+)"', SOURCES))
    notes |= {
        name for names in re.findall(r'return \[("\w+")\]', SOURCES) for name in [names[1:-1]]
    }
    notes |= set(re.findall(r'return \["(\w+)"\] if', SOURCES))
    assert rows_below("Notes") == notes
