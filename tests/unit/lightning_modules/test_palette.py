from __future__ import annotations

from lightning_modules import palette
from tests.conftest import REPOSITORY


def test_no_other_file_spells_a_colour_of_the_palette() -> None:
    colors = {value.lower() for name, value in vars(palette).items() if name.isupper()}
    assert len(colors) == 7
    rooms = (REPOSITORY / room for room in ("benchmarks", "experiments", "lightning_modules", "sagemaker_launch"))
    files = [path for room in rooms for pattern in ("*.py", "*.j2") for path in room.rglob(pattern)]
    assert len(files) > 100
    spelled = [path for path in files if any(color in path.read_text().lower() for color in colors)]
    assert [path.name for path in spelled] == ["palette.py"]
