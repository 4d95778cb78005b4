"""What an import costs, and in which direction imports go."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import crossdistill

SOURCE = Path(crossdistill.__file__).parent
LAYERS = [
    {"errors", "files", "image_size", "progress"},
    {"types"},
    {"config", "distributed"},
    {"losses", "backbones", "data", "tasks"},
    {"methods"},
    {"teacher", "balance", "distiller"},
    {"cache"},
    {"evaluation", "export", "report"},
    {"training"},
    {"commands"},
    {"cli", "__main__", "__init__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("crossdistill"):
            yield node.module, [alias.name for alias in node.names]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way_and_use_public_names(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    for module, names in imports_of(path):
        other = module.split(".")[1] if "." in module else "__init__"
        if other != parts[0] and parts != ("__init__",):
            private = [part for part in (*module.split(".")[2:], *names) if part.startswith("_") and part[:2] != "__"]
            assert not private, f"{module} has the private {private}"
            assert other == "__init__" or LEVEL[other] <= LEVEL[parts[0]], f"{parts[0]} imports {other}"


def loaded_by(code):
    shown = f"import sys\n{code}\nprint(*sys.modules)"
    return subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True).stdout.split()


def test_the_library_loads_neither_lightning_nor_matplotlib():
    modules = loaded_by("import crossdistill as cd\nfor name in cd.__all__: getattr(cd, name)")
    assert "torch" in modules
    assert not {"lightning", "matplotlib", "rich", "sklearn"} & set(modules)


def test_the_settings_load_no_torch():
    assert "torch" not in loaded_by("import crossdistill.config, crossdistill.cli")


def test_public_names():
    contract = {"create_backbone", "create_distiller", "list_methods", "Method", "Teacher", "Distiller"}
    contract |= {"BackboneOutput", "StepResult", "UserError", "losses", "load_backbone"}
    assert contract <= set(crossdistill.__all__) == set(crossdistill._MODULES) | {"__version__"}
    for name in crossdistill.__all__:
        assert getattr(crossdistill, name) is not None
    # What is imported lazily is imported for type checkers as well.
    typed = (SOURCE / "__init__.py").read_text().partition("if TYPE_CHECKING:")[2].partition("\n\n")[0]
    assert all(f" as {name}" in typed for name in crossdistill._MODULES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        crossdistill.nothing  # noqa: B018
