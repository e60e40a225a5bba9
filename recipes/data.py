"""Real data that needs no download, as folders a person would have.

    python recipes/data.py digits data/digits     scikit-learn's 1,797 handwritten digits, PNG files in a folder a class
    python recipes/data.py stdlib data/stdlib     the source files of Python's standard library, without its tests
    python recipes/data.py tables data/tables     scikit-learn's breast cancer, wine and diabetes, a CSV file each

What is there already is left as it is, so running it again costs nothing.
"""

from __future__ import annotations

import csv
import shutil
import sys
import sysconfig
from pathlib import Path

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "__phello__"}


def write_digits(folder: Path) -> int:
    """Write the digits as 8-bit gray images of 8x8 pixels; how many."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")
    for number, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return len(pixels)


def copy_stdlib(folder: Path) -> int:
    """Copy the standard library's .py files, in their folders; how many."""
    source = Path(sysconfig.get_path("stdlib"))
    number = 0
    for path in sorted(source.rglob("*.py")):
        inside = path.relative_to(source)
        if LEFT_OUT & set(inside.parts) or path.stat().st_size == 0:
            continue
        number += 1
        target = folder / inside
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return number


def write_tables(folder: Path) -> int:
    """Write three tables, a row a sample: features under their names, then `target` (whole numbers: classes)."""
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

    folder.mkdir(parents=True, exist_ok=True)
    tables = {"breast_cancer": load_breast_cancer(), "wine": load_wine(), "diabetes": load_diabetes(scaled=False)}
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        if path.exists():
            continue
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*(feature.replace(" ", "_") for feature in table.feature_names), "target"])
            writer.writerows(
                [*row, target] for row, target in zip(table.data.tolist(), table.target.tolist(), strict=True)
            )
    return len(tables)


def main() -> None:
    makers = {"digits": write_digits, "stdlib": copy_stdlib, "tables": write_tables}
    if len(sys.argv) != 3 or sys.argv[1] not in makers:
        sys.exit(__doc__)
    number = makers[sys.argv[1]](Path(sys.argv[2]))
    print(f"{number:,} files in {sys.argv[2]}")


if __name__ == "__main__":
    main()
