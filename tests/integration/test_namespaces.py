"""What a process in namespaces of its own sees of this machine: links and folders that a mount would hide."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sagemaker_launch.rehearsal.machine.image_root import UNKNOWN_USER, ImageRoot
from sagemaker_launch.rehearsal.machine.namespaces import SYSTEM_PATH, find_namespaces, own_folder, own_tmp


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


def test_an_ordinary_user_mounts_where_root_keeps_a_record_of_mounts(below_tmp: Path) -> None:
    if os.geteuid() != 0 or find_namespaces() is None:
        pytest.skip("needs root, who can become another user, and Linux namespaces")
    system, tree = below_tmp / "system", below_tmp / "tree"
    for folder in (system, tree / "tmp"):
        folder.mkdir(parents=True)
        os.chown(folder, 65534, 65534)
    os.chown(tree, 65534, 65534)
    below_tmp.chmod(0o755)
    (system / "plain").write_text("seen")
    user = "setpriv --reuid=65534 --regid=65534 --clear-groups unshare --mount --map-root-user"
    script = "\n".join(["set -e", *own_folder(system, tree), f"cat {shlex.quote(str(system / 'plain'))}"])
    record = "mount -n -t tmpfs tmpfs /run/mount && touch /run/mount/utab"
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f"mkdir -p /run/mount && {record} && exec {user} sh -c {shlex.quote(script)}",
        ],
        env={"PATH": SYSTEM_PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "seen"), done.stderr


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


def machine(tree: Path, look: str, *, serverless: bool) -> str:
    """What a shell prints in a container whose image is this machine's root file system."""
    namespaces = find_namespaces()
    if namespaces is None or not namespaces.root:
        pytest.skip("needs Linux namespaces of root, who can become another user")
    for folder in ("tmp", "model"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    (tree / "model" / "model.json").write_text("model,")
    tree.chmod(0o700)  # the container's user reads its files all the same
    image = ImageRoot(Path("/"), ["sh", "-c"], {"PATH": SYSTEM_PATH}, "/usr", 1000, 1000, "/home/serving")
    return output(image.init_script(tree, tree / "model", [*image.entrypoint, look], serverless=serverless))


LOOK = """id -u; id -G; pwd; cat /opt/ml/model/model.json
for path in /opt/ml/model /usr /dev/shm /tmp; do ( echo x > $path/written ) 2> /dev/null && echo $path; done
echo x > /dev/null && head -c 1 /dev/urandom > /dev/null && ls /proc/self/fd > /dev/null && echo devices
"""


def test_a_container_of_an_image_has_its_user_and_a_shared_memory(below_tmp: Path) -> None:
    seen = machine(below_tmp / "a: tree, with $signs", LOOK, serverless=False)
    assert seen == "1000\n1000\n/usr\nmodel,/dev/shm\n/tmp\ndevices\n"
    assert not Path("/usr/written").exists() and not Path("/tmp/written").exists()
    assert machine(below_tmp / "a: tree, with $signs", "echo restarted", serverless=False) == "restarted\n"


def test_a_serverless_machine_knows_no_user_and_is_read_only_without_shared_memory(below_tmp: Path) -> None:
    seen = machine(
        below_tmp / "tree", LOOK + "[ -e /dev/shm ] || echo none; id -un 2> /dev/null || true", serverless=True
    )
    assert seen == f"{UNKNOWN_USER}\n{UNKNOWN_USER}\n/usr\nmodel,/tmp\ndevices\nnone\n{UNKNOWN_USER}\n"
