"""What a process in namespaces of its own sees of this machine: links and folders that a mount would hide."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sagemaker_launch.rehearsal.namespaces import SYSTEM_PATH, find_namespaces, own_folder, own_tmp


@pytest.fixture
def below_tmp() -> Iterator[Path]:
    """A folder below /tmp, with a space in its name."""
    with tempfile.TemporaryDirectory(prefix="a b-", dir="/tmp") as folder:
        yield Path(folder)


def output(lines: Sequence[str], *commands: str) -> str:
    """What commands print after the given shell lines have turned fresh namespaces into a container."""
    namespaces = find_namespaces()
    if namespaces is None:
        pytest.skip("needs Linux namespaces")
    script = "\n".join(["set -e", *lines, *commands])
    done = subprocess.run(
        [*namespaces.command, "sh", "-c", script],
        env={"PATH": SYSTEM_PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_link_in_a_kept_folder_leads_to_its_target_below_tmp(below_tmp: Path) -> None:
    target, root, hidden = below_tmp / "built" / "image", below_tmp / "root", below_tmp / "hidden"
    for folder in (target, root / "tree" / "tmp", hidden):
        folder.mkdir(parents=True)
    (target / "file").write_text("found")
    link = root / "image"
    link.symlink_to(target)
    lines = [*own_folder(Path("/opt"), root / "tree"), *own_tmp(root / "tree", [root, link])]
    found = f"cat {shlex.quote(str(link / 'file'))}"
    seen = output(lines, found, f"[ -e {shlex.quote(str(hidden))} ] || echo ' and the rest hidden'")
    assert seen == "found and the rest hidden\n"


def test_a_folder_that_contains_the_container_itself_shows_all_it_had_and_keeps_nothing(below_tmp: Path) -> None:
    system, tree = below_tmp / "system", below_tmp / "system" / "my project" / "tree"
    tree.mkdir(parents=True)
    for name in ("plain", ".hidden", "with space", "my project/file"):
        (system / name).write_text(f"{name},")
    place = shlex.quote(str(system))
    seen = output(
        own_folder(system, tree),
        f"cd {place}",
        "cat plain .hidden 'with space' 'my project/file'",
        "touch new 'my project/made'",
        "ls",
    )
    assert seen == "plain,.hidden,with space,my project/file,my project\nnew\nplain\nwith space\n"
    assert not (system / "new").exists()
    assert (tree.parent / "made").exists(), "what is inside one of its folders is the machine's own"
