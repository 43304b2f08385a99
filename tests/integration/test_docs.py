"""The pages: every link of theirs leads somewhere, every page is found, every call exists."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml

from strive.cli import app
from strive.configs.load import load_config, preset_names
from strive.configs.schema import SCHEMAS, TrainConfig
from strive.evaluate.benchmarks import parse_spec

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# `strive-cli ...`, or a launcher with its own options before ours.
CALL = re.compile(
    r"(?:\w+=\S+ )*"
    r"(?:strive-cli|(?:srun )?torchrun .*-m strive\.cli|deepspeed .*--module strive\.cli) (.*)"
)
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """A page without its code blocks and code words, whose brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs both make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found.add(re.sub("-+", "-", slug))
    return found


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        is_on_site = page.parent != DOCS or target.is_relative_to(DOCS)
        if not target.exists() or not is_on_site or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`: c\n[x](#a-b-c) [y](#no) [z](gone.md) [w](https://a.b) `[v](no)`\n")
    assert broken_links(page) == ["#no", "gone.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_every_page_is_found_from_home_and_in_the_menu() -> None:
    pages = {page.name for page in DOCS.glob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(([\w-]+\.md)", prose(DOCS / "index.md")))
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert pages <= set(re.findall(r"[\w-]+\.md", str(menu)))


def calls(page: Path) -> list[str]:
    """What follows `strive-cli`, or a launcher's `-m strive.cli`, in a page's shell blocks.

    Continued lines are joined; a shell's variables are 0.
    """
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [match[1] for line in lines if (match := CALL.fullmatch(line.strip()))]
    return [re.sub(r"\$\{?\w+\}?", "0", call) for call in found]


def test_calls_under_a_launcher_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nA=0,1 torchrun --nproc_per_node=2 \\\n    -m strive.cli train --set seed=$seed\n"
        "deepspeed --no_local_rank --module strive.cli train\nhf download x\n"
        "  strive-cli doctor\n```\n"
    )
    assert calls(page) == ["train --set seed=0", "train", "doctor"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_is_one_that_the_parser_takes(page: Path) -> None:
    tree = typer.main.get_command(app)
    for call in calls(page):
        words = [word for word in shlex.split(call, comments=True) if word != "..."]
        command = tree
        while getattr(command, "commands", None):
            command = command.commands[words.pop(0)]
        with command.make_context(command.name, words):
            pass
        names = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--config"]
        assert all(name in preset_names() for name in names if not name.endswith(".yaml")), call
        keys = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--set"]
        schema = SCHEMAS.get(str(command.name), TrainConfig)
        load_config(schema, [], [key for key in keys if not key.startswith("held_out")])
        asked = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--benchmark"]
        for benchmark in asked:
            parse_spec(benchmark)


def test_the_first_picture_is_small() -> None:
    assert 10_000 < (DOCS / "inspect-page.webp").stat().st_size < 200_000
