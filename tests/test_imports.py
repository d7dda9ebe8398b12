"""Who may import whom, read from the source; and what the command line imports before it answers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trajgen
from trajgen.core.registry import KINDS, ROOMS, names

ROOT = Path(trajgen.__file__).parent
COMPONENTS = {
    "schedules",
    "views",
    "conditioners",
    "tokenizers",
    "priors",
    "decoders",
    "actions",
    "critics",
    "samplers",
}
COMPONENTS |= {"return_targets", "subgoals", "encoders"}
OPTIONS = {"data.options", "engine.options", "evaluation.evaluate", "policies.options"}
"""Modules of option dataclasses, which the configuration may import."""

MAY: dict[str, set[str]] = {
    "core": {"security"},  # files are read with limits
    "security": set(),
    "nn": {"core"},
    **{room: {"core", "nn"} for room in COMPONENTS},
    "planners": {"core", "nn", *COMPONENTS},
    "export": {"core"},
    "policies": {"core", "nn", *COMPONENTS, "planners", "export"},
    "data": {"core", "security"},
    "envs": {"core", "data", "security"},
    "importing": {"core", "data", "envs", "security"},  # compares the data with the environment to evaluate in
    "engine": {"core", "security"},
    "evaluation": {"core", "data", "envs"},
    "assemble": {"core", "nn", *COMPONENTS, "planners", "policies"},
    "config": {"core", "security", *OPTIONS},
    "viz": {"", "core", "nn", "config", "data", "envs", "evaluation", "policies"},
    "experiments": {
        "core",
        "nn",
        "security",
        "data",
        "envs",
        "engine",
        "evaluation",
        "policies",
        "assemble",
        "config",
        "viz",
    },
    "testing": {"", "core", "assemble", "config"},
    "templates": {"", "core", "nn", "tokenizers"},  # as a module of a person's own
    "cli": {
        "",
        "core",
        "security",
        "data",
        "importing",
        "envs",
        "engine",
        "evaluation",
        "config",
        "viz",
        "experiments",
        "testing",
        "export",
        "bench",
    },
    "bench": {"core", "config", "engine", "evaluation", "export", "experiments", "viz"},
    "": {"core", "experiments"},  # the package itself: public names
    "__main__": {"cli"},
}
"""For each room, the rooms that it may import besides itself."""

HEAVY = {"torch", "minari", "gymnasium", "mujoco", "matplotlib", "timm", "hydra", "vector_quantize_pytorch"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> list[tuple[int, str]]:
    """Line and module (without the package's name) of each import of our own."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            if node.module == "trajgen":
                rooms = {path.stem for path in ROOT.iterdir()}
                modules += [(node.lineno, a.name if a.name in rooms else "") for a in node.names]
            elif node.module and node.module.startswith("trajgen."):
                modules += deeper(node)
        elif isinstance(node, ast.Import):
            modules += [(node.lineno, a.name.partition(".")[2]) for a in node.names if a.name.startswith("trajgen")]
    return modules


def deeper(node: ast.ImportFrom) -> list[tuple[int, str]]:
    """``from trajgen.envs import makers`` imports the module trajgen.envs.makers."""
    module = (node.module or "").removeprefix("trajgen.")
    folder = ROOT / module.replace(".", "/")
    return [(node.lineno, f"{module}.{a.name}" if (folder / f"{a.name}.py").exists() else module) for a in node.names]


def allowed(module: str, target: str) -> bool:
    room, other = module.partition(".")[0], target.partition(".")[0]
    return room == other or other in MAY[room] or target in MAY[room]


SOURCES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_arrows_point_the_right_way(path: Path) -> None:
    module = module_of(path)
    assert module.partition(".")[0] in MAY, f"a new room: say in MAY what it may import ({module})"
    wrong = [f"{path}:{line} imports trajgen.{t}" for line, t in imported(path) if not allowed(module, t)]
    assert not wrong


def test_a_wrong_arrow_is_found(tmp_path: Path) -> None:
    assert not allowed("engine.loop", "planners.latent") and not allowed("tokenizers.multiscale", "priors.transformer")
    assert not allowed("core.types", "nn.layers") and not allowed("data.windows", "config")
    assert allowed("config", "engine.options") and not allowed("config", "engine.loop")
    source = tmp_path / "loop.py"
    source.write_text("def f():\n    from trajgen.planners.latent import LatentPlanner\n    import trajgen.config\n")
    assert imported(source) == [(2, "planners.latent"), (3, "config")]


def test_every_room_with_components_is_listed() -> None:
    assert set(ROOMS) == COMPONENTS | {"planners"}
    assert set(MAY) >= {module_of(path).partition(".")[0] for path in SOURCES}


def test_only_the_quantizers_import_vector_quantize_pytorch() -> None:
    users = [module_of(path) for path in SOURCES if "vector_quantize_pytorch" in path.read_text(encoding="utf-8")]
    assert users == ["tokenizers.quantizers"]


def test_the_engine_names_no_component() -> None:
    component_names = {name for kind in KINDS for name in names(kind) if "_" in name or len(name) > 8}
    component_names |= {"mage", "tokenizer", "codebook", "prior", "decoder", "isinstance"}
    for path in (ROOT / "engine").glob("*.py"):
        words = set(re.findall(r"\w+", path.read_text(encoding="utf-8").lower()))
        assert not words & component_names, path


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


LINES = [
    "--help", "list", "list sampler/top_p", "list prior/transformer", "train --help", "check --help", "new --help",
    "plot --help", "video --help", "report --help", "export --help", "bench --help", "bench decision --help",
    "study --help", "search --help", "evaluate --help", "data import --help", "data info pointmaze/umaze", "trian",
    "train mage", "study study=levles", "evaluate greedy", "evaluate run=nowhere", "plot run=nowhere", "data info",
    "bench decision run=x recipe=mage",
]  # fmt: skip
REFUSED_BY_HYDRA = ["train recipe=mgae", "train sampler=gredy"]


REFUSED_WITHOUT_TORCH = [
    "train data.id=mine/none-v0", "train resume=true", "train device=mps", "train recipe=mage init=nowhere",
    "evaluate run=zoo/mage-umaze sampler.temprature=1", "study study=num_scales seeds=[]",
    "study study=num_scales --config-dir=nowhere", "search search=mage --config-dir=nowhere",
    "plot run=zoo/mage-umaze what=foo", "check prior/foo", "data info foo", "data info lab/none-v0", "data get foo",
    "data record id=a/b-v0 env=Nope-v0 policy=random",
]  # fmt: skip


def test_the_command_line_answers_without_heavy_imports() -> None:
    code = f"""
import sys, time
from contextlib import suppress
from trajgen.cli import main
for line in {[*LINES, *REFUSED_BY_HYDRA]!r}:
    with suppress(SystemExit):
        main(line.split())
    print("loaded", time.process_time(), line, *{HEAVY!r} & {{*sys.modules}}, sep="|")
"""
    loaded = [line.split("|")[1:] for line in run(code).splitlines() if line.startswith("loaded|")]
    assert [(line, heavy) for _, line, *heavy in loaded if heavy] == [(line, ["hydra"]) for line in REFUSED_BY_HYDRA]
    assert [line for _, line, *_ in loaded] == [*LINES, *REFUSED_BY_HYDRA]
    assert float(loaded[0][0]) < 1.0  # 0.15 to 0.45 on a quiet core


def test_environments_in_processes_and_reports_need_no_torch() -> None:
    needed = "trajgen.evaluation.workers, trajgen.envs.eval_env, trajgen.experiments.reporting"
    modules = run(f"import sys, {needed}; print(*sys.modules)").split()
    assert "gymnasium" in modules and not {"torch", "minari", "mujoco"} & {*modules}


def test_a_policy_is_loaded_without_a_compiler() -> None:
    """Their imports take as long as torch's."""
    load = "for name in ('umaze', 'pen'): trajgen.load_policy(f'zoo/mage-{name}')"
    modules = run(f"import sys, trajgen\n{load}\nprint(*sys.modules)").split()
    assert "torch" in modules
    assert not {"torch._dynamo", "sympy", "vector_quantize_pytorch", "timm", "minari", "matplotlib"} & {*modules}


def test_the_package_imports_nothing_until_it_is_asked() -> None:
    assert not HEAVY & set(run("import sys, trajgen; print(*sys.modules)").split())
    assert trajgen.ScaleSchedule((1, 2)).tokens == 3
    for name in trajgen.__all__:
        assert getattr(trajgen, name)
    absent = "no_such_name"
    with pytest.raises(AttributeError, match=absent):
        getattr(trajgen, absent)


def test_what_needs_no_torch_is_refused_without_it(tmp_path: Path) -> None:
    code = f"""
import os, sys
from contextlib import suppress
from trajgen.cli import main
os.chdir({str(tmp_path)!r})
for line in {REFUSED_WITHOUT_TORCH!r}:
    with suppress(SystemExit):
        main(line.split())
    print(f"{{line}}|{{'torch' in sys.modules}}")
"""
    assert run(code).splitlines() == [f"{line}|False" for line in REFUSED_WITHOUT_TORCH]
