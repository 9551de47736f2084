"""Whether a folder of drawn images is whole: every shard, the manifest, and what was asked."""

from __future__ import annotations

from pathlib import Path

from mixport.calibration.drawn_images.recipe_file import RECIPE_FILE, recipe_problem
from mixport.calibration.drawn_images.shards import verify_folder
from mixport.calibration.drawn_images.similarity_file import SIMILARITY_FILE, read_similarity


def verify_drawn_folder(path: Path) -> list[str]:
    """What is wrong with the folder of a drawing request, one line each; empty where nothing is. Changes
    nothing.
    """
    recipe = recipe_problem(path)
    _, similarity = read_similarity(path)
    problems = [
        f"{name}: {problem}"
        for name, problem in ((RECIPE_FILE, recipe), (SIMILARITY_FILE, similarity))
        if problem is not None
    ]
    return problems + verify_folder(path)
