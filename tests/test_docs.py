"""Documentation that can break: commands, options, targets, links, and what must not be written."""

import functools
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".sh", ".lock", ""}
# Written so that this file does not match itself.
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.$~)}/-])/(?:root|home|tmp|work|farm)/\w"),
    "a package registry's host": re.compile(r"(?:pypi|pythonhosted|npmjs)\.(?:org|com)"),
    "a number that only a tracker knows": re.compile(r"(?i:\bissue)\s*#?\d"),
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_lines(page: Path) -> Iterator[str]:
    """Lines of fenced blocks and inline code of a page."""
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced:
            yield line
        else:
            yield from re.findall(r"`([^`]+)`", line)


def calls(program: str) -> list[tuple[str, list[str]]]:
    """Every call of `program` in the pages, as (page, words after the program's name)."""
    found = []
    for page in PAGES:
        for line in code_lines(page):
            command = re.split(r"\s#|&&|\||;", line.strip().removeprefix("$ "))[0]
            if command.startswith(program + " "):
                found.append((name_of(page), shlex.split(command)[1:]))
    return found


@pytest.fixture
def help_of(capsys, monkeypatch):
    """`vsp COMMAND --help` as (exit code, text), wide enough that no option is cut."""
    from jobs.cli import main

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    @functools.cache
    def run(command: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        return stop.value.code, capsys.readouterr().out

    return run


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_vsp_commands_and_options_in_the_pages_exist(help_of):
    found = [(page, words) for page, words in calls("vsp") if re.fullmatch("[a-z]+", words[0])]
    assert "README.md" in {page for page, _ in found}
    for page, (command, *words) in found:
        code, text = help_of(command)
        assert code == 0, f"{page}: vsp {command} does not exist"
        for option in (word.split("=")[0] for word in words if re.match("--?[a-z]", word)):
            known = re.search(rf"(?<![\w-]){option}(?![\w-])", text)
            assert known, f"{page}: vsp {command} has no option {option}"


def test_make_targets_in_the_pages_exist():
    found = [(page, word) for page, words in calls("make") for word in words if "=" not in word]
    assert ("README.md", "demo") in found
    assert ("README.md", "test") in found
    wrong = [f"{page}: make {word}" for page, word in found if word not in make_targets()]
    assert not wrong, "\n".join(wrong)


def test_make_help_lists_every_target():
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {line.split()[0] for line in shown.stdout.splitlines()} == make_targets()


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    assert all(f"make {target}" in script for target in ("test", "check", "test-slow", "demo"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    broken = [target for target in local if not (page.parent / target).exists()]
    assert not broken


def test_files_named_in_code_exist():
    path = re.compile(r"(?:vsp_model|pipeline|jobs|configs|tests|benchmarks|docs)/[\w./-]+\.\w+")
    named = {
        (name_of(p), name) for p in PAGES for line in code_lines(p) for name in path.findall(line)
    }
    missing = sorted(f"{page}: {name}" for page, name in named if not (ROOT / name).exists())
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("room", ["vsp_model", "pipeline", "jobs"])
def test_architecture_names_every_module_and_no_other(room):
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.split(f"\n`{room}/`", 1)[1].split("|---|---|", 1)[1].split("\n\n", 1)[0]
    named = re.findall(r"`([\w/]+\.py)`", section)
    files = [path.relative_to(ROOT / room) for path in (ROOT / room).rglob("*.py")]
    there = [path.as_posix() for path in files if path.name != "__init__.py"]
    assert len(named) == len(set(named))
    assert not set(named) ^ set(there)


def tracked_files() -> list[Path]:
    """Files of the repository, new ones included, ignored ones not."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def forbidden_in(text: str) -> list[str]:
    return [
        f"{number}: {what}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        if pattern.search(line)
    ]


def test_no_file_names_a_machine_or_a_registry():
    files = [path for path in tracked_files() if path.suffix in TEXT_SUFFIXES]
    found = [f"{name_of(f)}:{hit}" for f in files for hit in forbidden_in(f.read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_forbidden_patterns_catch_what_they_name():
    assert forbidden_in("see /" + "root/x") == ["1: a path of one machine"]
    assert forbidden_in("https://pypi" + ".org/simple") == ["1: a package registry's host"]
    assert forbidden_in("as Issue" + " #3 says") == ["1: a number that only a tracker knows"]
    assert not forbidden_in("a/tmp/b, $OUT/tmp/x, ray-project/ray#55008, /opt/data")
