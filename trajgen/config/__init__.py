"""Recipes and command lines to a typed configuration."""

from trajgen.config.composing import (
    absolute_paths,
    compose,
    config_dir_word,
    from_hydra,
    hydra_application,
    hydra_run,
    is_for_hydra,
    quoted,
    task_line,
    task_words,
)
from trajgen.config.files import (
    RECIPES,
    data_files,
    read_options,
    read_yaml,
    recipe_files,
    search_files,
    study_files,
    zoo_files,
)
from trajgen.config.schema import SECTIONS, Config, merged
from trajgen.config.suggestions import suggestion
from trajgen.config.task_options import options_by_recipe

__all__ = [
    "RECIPES",
    "SECTIONS",
    "Config",
    "absolute_paths",
    "compose",
    "config_dir_word",
    "data_files",
    "from_hydra",
    "hydra_application",
    "hydra_run",
    "is_for_hydra",
    "merged",
    "options_by_recipe",
    "quoted",
    "read_options",
    "read_yaml",
    "recipe_files",
    "search_files",
    "study_files",
    "suggestion",
    "task_line",
    "task_words",
    "zoo_files",
]
