"""Which lines of rnnsparse inputs reach: what guides the search.

`watch()`, called before rnnsparse is imported, puts an assignment to one byte before each statement of its functions.
That costs a few percent, where `sys.settrace` makes everything three times as slow; it works in every Python.
"""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeVar

PACKAGE = "rnnsparse"
COMPILED = "rnnsparse.kernels"  # numba turns these functions into machine code; they read arrays, not files
NAME = "__reached_lines__"
_reached = bytearray()  # one byte for each statement that could run, 1 if it did
N = TypeVar("N", bound=ast.AST)


def watch() -> None:
    """Watch the modules of rnnsparse that are imported from now on."""
    assert PACKAGE not in sys.modules, "what is imported already cannot be watched"
    sys.meta_path.insert(0, _Finder())


def forget() -> None:
    """Begin to count anew."""
    _reached[:] = bytes(len(_reached))


def reached() -> int:
    """Return how many statements ran at least once; 0 if none is watched."""
    return _reached.count(1)


def instrumented(source: str | bytes, path: str) -> ast.Module:
    """Return the tree of a module whose functions set a byte of the global `__reached_lines__` for each statement."""
    tree = ast.parse(source, path)
    _Functions().visit(tree)
    return tree


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE or f"{fullname}.".startswith(f"{COMPILED}."):
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> Any:
        # Not the code that was compiled for everybody and kept beside the source.
        path = self.get_filename(fullname)
        return compile(instrumented(self.get_data(path), path), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[NAME] = _reached
        super().exec_module(module)


class _Functions(ast.NodeTransformer):
    """Changes the statements within functions; those of modules and classes run before there is any input."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return _with_marks(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        return _with_marks(node)


def _with_marks(node: N) -> N:
    """Mark each statement below a node, in place."""
    for child in list(ast.walk(node)):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(child, field, None)
            if not isinstance(statements, list):
                continue  # a lambda has one expression
            marked: list[ast.stmt] = []
            for statement in statements:
                # A docstring must stay the first; it and the names of `global` do not run.
                if not isinstance(statement, ast.Global | ast.Nonlocal) and not _is_text(statement):
                    marked.append(_mark(statement))
                marked.append(statement)
            setattr(child, field, marked)
    return node


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _mark(statement: ast.stmt) -> ast.stmt:
    _reached.append(0)
    (mark,) = ast.parse(f"{NAME}[{len(_reached) - 1}] = 1").body
    for node in ast.walk(mark):
        ast.copy_location(node, statement)
    return mark
