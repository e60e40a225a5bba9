from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from headrace.errors import RecipeError
from headrace.train.recipe import RecipeTarget, check_syntax, load_recipe


@pytest.mark.parametrize(
    ("text", "path", "function", "name"),
    [
        ("a/b.py", "a/b.py", "recipe", "b"),
        ("a/b.py:large", "a/b.py", "large", "b-large"),
        ("odd:dir/b.py", "odd:dir/b.py", "recipe", "b"),
    ],
)
def test_a_target_is_a_file_and_a_function(text, path, function, name):
    target = RecipeTarget.parse(text)
    assert (target.path, target.function, target.name) == (Path(path), function, name)


def write(folder, text):
    path = folder / "mine.py"
    path.write_text(text)
    return RecipeTarget.parse(str(path))


def test_a_syntax_error_is_told_with_file_and_line_before_anything_runs(tmp_path):
    target = write(tmp_path, "raise SystemExit('ran')\ndef recipe(:\n")
    with pytest.raises(RecipeError, match=r"mine\.py, line 2: invalid syntax"):
        check_syntax(target)


def test_a_missing_file_a_missing_function_and_a_failing_import_are_told(tmp_path):
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(RecipeTarget.parse(str(tmp_path / "none.py")))
    with pytest.raises(RecipeError, match="no function 'recipe': it has small"):
        load_recipe(write(tmp_path, "def small(): pass\n"))
    with pytest.raises(RecipeError, match=r"mine\.py, line 2: ModuleNotFoundError: No module named 'nowhere'"):
        load_recipe(write(tmp_path, "\nimport nowhere\n"))


def test_a_recipe_may_import_what_lies_beside_it(tmp_path):
    (tmp_path / "beside_a_recipe.py").write_text("value = 7\n")
    assert load_recipe(write(tmp_path, "from beside_a_recipe import value\ndef recipe(): return value\n"))() == 7


def test_what_a_recipe_defines_travels_to_a_process_that_does_not_have_the_file(tmp_path):
    text = "import numpy as np\ndef double(x): return int(np.int64(2) * x)\ndef recipe(): return double\n"
    fn = load_recipe(write(tmp_path, text))()
    (tmp_path / "mine.py").unlink()
    (tmp_path / "fn").write_bytes(cloudpickle.dumps(fn))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'fn')!r}, 'rb'))(21))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "42\n"
    assert pickle.loads(cloudpickle.dumps(fn))(4) == 8


def test_reading_recipes_needs_no_torch():
    code = "import sys, headrace.train.worker, headrace.train.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
