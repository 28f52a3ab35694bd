"""Every message that the project raises has a row in docs/troubleshooting.md, and every row has its message.

The words in backquotes that begin a row are its marker: the part of a message by which a reader finds the row. `…`
stands for any words between. A message belongs to a row whose marker it contains, so the other words of a message may
change without an edit of the page. What the code fills in is `…` in a message, too.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "troubleshooting.md"
ROOMS = ("experiments", "lightning_modules", "sagemaker_launch")
REQUIRED = "… must …, got …"
"""What `require` itself raises."""
BOUND_ROW = "KEY must be BOUND, got VALUE"
"""The one row for all checks of a single field that say what may be typed instead."""
BOUND = re.compile(
    r"[\w.…-]+ must (be|have) "
    r"(finite|[<>]=? \S+|[\d.…]+\.\.\S+( \(28 days\))?|in [(\[]\S+ \S+[)\]]|at most […\d]+( entries)?|one of …)"
    r"( for (kind )?…)?, got …"
)
LEAST_LETTERS = 9
"""Of a message or row besides its placeholders: with fewer it passes on what another place, or AWS, has said."""
OURS = ("AssertionError", "AttributeError")
"""What tells of a mistake in the code, not of what a user can mend."""
HOLE = "…"


def sources(*, rehearsal: bool) -> list[Path]:
    """The project's files; the rehearsal's messages are AWS's own wording."""
    found = (path for room in ROOMS for path in sorted((REPOSITORY / room).rglob("*.py")))
    return [path for path in found if rehearsal or "rehearsal" not in path.parts]


def template(node: ast.expr | None, known: dict[str, ast.expr]) -> str:
    """A string as the code writes it, with HOLE for what it fills in.

    Args:
        known: names that stand for one string in the function around.
    """
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(template(value, known) for value in values)
        case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name) if name in known:
            return template(known[name], {key: value for key, value in known.items() if key != name})
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left, known) + template(right, known)
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as glue), attr="join"), args=[ast.List(elts=parts)]
        ):
            return glue.join(template(part, known) for part in parts)
    return HOLE


def raised(source: str) -> Iterator[tuple[int, str]]:
    """Line and template of every message that a file raises: exceptions that are made, and calls of `require`."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    # Settings check their fields through a function in a function: it puts the section in front of the name.
    checks = {
        function.name: calls(function, "require")[0]
        for function in functions
        if function.name == "check" and calls(function, "require")
    }
    for function in [tree, *functions]:
        known = strings(function)
        for node in own_nodes(function):
            if not isinstance(node, ast.Call) or node in checks.values():
                continue
            name = called(node)
            arguments = [template(argument, known) for argument in node.args]
            if name == "require":
                yield node.lineno, f"{arguments[1]} must {arguments[2]}, got {HOLE}"
            elif name in checks:
                key = template(checks[name].args[1], {}).replace(HOLE, arguments[1])
                yield node.lineno, f"{key} must {arguments[2]}, got {HOLE}"
            elif name.endswith(("Error", "BadZipFile", "TrialPruned")) and name not in OURS:
                yield node.lineno, max(arguments, key=len, default=HOLE)
    for error_class in (
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    ):
        for node in calls(error_class, "__init__"):
            yield node.lineno, max((template(argument, {}) for argument in node.args), key=len, default=HOLE)


def called(node: ast.Call) -> str:
    """The name of what is called, without its module or object."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def calls(inside: ast.AST, name: str) -> list[ast.Call]:
    """Calls of a function or method of that name."""
    return [node for node in ast.walk(inside) if isinstance(node, ast.Call) and called(node) == name]


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function, without the functions in it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from own_nodes(child)


def strings(function: ast.AST) -> dict[str, ast.expr]:
    """Names that a function gives to one string and to nothing else."""
    assigned: dict[str, list[ast.expr]] = {}
    for node in own_nodes(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, []).append(node.value)
    return {name: values[0] for name, values in assigned.items() if len(values) == 1 and is_text(values[0])}


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def texts(tree: ast.AST) -> Iterator[ast.expr]:
    """All strings but docstrings."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Expr):
            yield from (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr) and is_text(child))


def letters(message: str) -> int:
    return len(re.findall(r"[a-zA-Z]", message))


def plain(message: str) -> str:
    """On one line, with one hole where several meet."""
    return re.sub(r"…[…\s]*…", HOLE, " ".join(message.split()))


@functools.cache
def messages() -> dict[str, str]:
    """Every message, and where it is raised."""
    found = {}
    for path in sources(rehearsal=False):
        for line, message in raised(path.read_text()):
            if letters(message) >= LEAST_LETTERS and message != REQUIRED:
                found[plain(message)] = f"{path.relative_to(REPOSITORY)}:{line}"
    return found


@functools.cache
def rows() -> list[str]:
    """The markers: what the first cells of the page's tables quote."""
    cells = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [found.strip() for cell in cells for _, found in re.findall(r"(`+)(.+?)\1(?!`)", cell)]


def matches(marker: str, message: str) -> bool:
    """Whether a message contains the marker of a row."""
    return pattern(marker).search(message) is not None


@functools.cache
def pattern(marker: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, marker.split(HOLE))))


def test_every_message_has_a_row_that_says_what_to_do() -> None:
    known = rows()
    missing = [
        f"{where}\n| `{message}` | what to do |"
        for message, where in messages().items()
        if not BOUND.fullmatch(message) and not any(matches(row, message) for row in known)
    ]
    assert not missing, f"add to {PAGE.name}, in the table of its area:\n\n" + "\n\n".join(missing)


def test_every_row_is_about_a_message_that_the_project_has() -> None:
    """Of those that are said without an error, and of the rehearsal's, any string of the code will do."""
    printed = {
        re.sub(r"%[sd]", HOLE, plain(template(node, {})))
        for path in sources(rehearsal=True)
        for node in texts(ast.parse(path.read_text()))
    }
    there = [*messages(), *printed]
    stale = [row for row in rows() if row != BOUND_ROW and not any(matches(row, message) for message in there)]
    assert not stale, f"no longer raised, or worded otherwise: {stale}"


def test_no_row_is_so_general_that_it_hides_a_new_message() -> None:
    assert BOUND_ROW in rows()
    assert [row for row in rows() if letters(row) < LEAST_LETTERS] == []
    assert len(rows()) == len(set(rows()))


def test_words_around_a_marker_may_change() -> None:
    assert matches("must hold …, got", "data.root must hold folders of photos, got …: look at the path")
    assert not matches("must hold …, got", "data.root must name a folder, got …")


def test_every_row_says_what_to_do() -> None:
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            assert len(line.split("|")) == 4, line
            assert len(line.split("|")[2].split()) >= 2, line


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(x):\n    raise ValueError(f'{x} must fit')", "… must fit"),
        ("def f(x):\n    said = f'no {x}'\n    raise OSError(f'{said}: {x}' + ' at all')", "no …: … at all"),
        ("def f(x):\n    require(x, 'data.root', 'be there', x)", "data.root must be there, got …"),
        ("def f(x):\n    return ValueError('made here, raised there')", "made here, raised there"),
        ("class ABadError(Exception):\n    def __init__(self):\n        super().__init__('why')", "why"),
        (
            "def f():\n    def check(c, n, r):\n        require(c, f'cloud.{n}', r, n)\n    check(1, 'tags', 'fit')",
            "cloud.tags must fit, got …",
        ),
    ],
)
def test_a_message_is_found_however_it_is_raised(source: str, message: str) -> None:
    assert [plain(text) for _, text in raised(source)] == [message]
