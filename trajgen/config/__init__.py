"""Recipes and command lines to a typed configuration."""

from trajgen.config.composing import ABOUT, ROOT, check_choices, compose, explain, from_hydra, own_files, store_groups
from trajgen.config.files import RECIPES, data_files, read_yaml, recipe_files, search_files, study_files
from trajgen.config.schema import SECTIONS, Config, merged

__all__ = [
    "ABOUT",
    "RECIPES",
    "ROOT",
    "SECTIONS",
    "Config",
    "check_choices",
    "compose",
    "data_files",
    "explain",
    "from_hydra",
    "merged",
    "own_files",
    "read_yaml",
    "recipe_files",
    "search_files",
    "store_groups",
    "study_files",
]
