"""No SQL and no shell command is pasted together: what is not a constant of ours travels quoted, or apart from it.

psycopg's types say the same with LiteralString, but mypy takes that for any `str` (PEP 675 is only in other checkers):
so it is proven here, by reading the code.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from test_architecture import modules

ALLOWED_SQL = {
    ("bounded", "super().execute(query, *args, **more)"): "handed on as it came: whoever asks for it is looked at",
    ("isolation.reset.undo", "sql.SQL(table.name)"): "quoted by the server that it came from",
    ("isolation.reset.relations", "sql.SQL(relation.name.replace('%', '%%'))"): "the same",
    ("isolation.sequences", "sql.SQL(name)"): "the same",
    ("isolation.verify.dump", "connection.execute(f'SELECT ({item.row})::text FROM {item.origin}')"): "the same",
    ("isolation.verify.dump", "connection.execute(' UNION ALL '.join(queries))"): "the same",
    ("isolation.verify.indexes", "connection.execute(' UNION ALL '.join(queries))"): "the same",
    ("isolation.reset.relations", "connection.execute(query, parameters, prepare=True)"): "composed by _in_blocks",
    ("isolation.reset.undo", "one.execute(query, parameters, prepare=True)"): "composed by all who ask _ask_both",
    ("steps", "connection.execute(source.encode())"): "the user's own file, whole and as it is",
}
"""What is neither a constant nor quoted by us, and why it may be run. That names are quoted by the server is tried with
hostile ones in `test_hostile`."""

ALLOWED_SHELL = {
    ("engines.container", "_keep_script()"): "a file of ours, as it is; what it needs to know are its arguments",
    ("engines.docker", "_STOP"): "constants of ours; what it needs to know are its arguments",
}
"""Scripts for `sh -c` that are no constant, and why they may be run."""

SHELLS = {"sh", "bash", "/bin/sh", "/bin/bash"}


@dataclass
class Scope:
    """Where names get their values: one function, or a module; `outer` is what is around it."""

    values: dict[str, list[ast.expr | None]] = field(default_factory=dict)
    """All that is ever assigned to a name; None where that can't be seen from here."""
    trusted: set[str] = field(default_factory=set)
    """Parameters that are SQL by their type: whoever calls is looked at instead."""
    outer: Scope | None = None

    def find(self, name: str) -> list[ast.expr | None]:
        if name in self.trusted:
            return []
        if name in self.values:
            return self.values[name]
        return self.outer.find(name) if self.outer is not None else [None]


def scope_of(tree: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef, outer: Scope | None) -> Scope:
    found = Scope(outer=outer)
    if not isinstance(tree, ast.Module):
        for argument in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs):
            if is_sql(argument.annotation):
                found.trusted.add(argument.arg)
            else:
                found.values[argument.arg] = [None]
    for target, value in assigned(tree):
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        else:
            names = [one for one in ast.walk(target) if isinstance(one, ast.Name)]
            pairs = [(name, value if name is target else None) for name in names]
        for one, its in pairs:
            found.values.setdefault(ast.unparse(one), []).append(its)
    return found


def assigned(tree: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """What gets a value, and which, if that can be seen."""
    for node in own_nodes(tree):
        if isinstance(node, ast.Assign):
            yield from ((target, node.value) for target in node.targets)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
            yield node.target, node.value
        elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            yield node.target, None
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            yield node.optional_vars, None


def own_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a function or module that are in no function inside it."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from own_nodes(node)


def is_sql(annotation: ast.expr | None) -> bool:
    said = ast.unparse(annotation) if annotation is not None else ""
    return "LiteralString" in said or said.startswith("sql.")


def is_constant(node: ast.expr | None, scope: Scope, seen: frozenset[str] = frozenset()) -> bool:
    """Whether it is a text that stands in our code, whole or in parts."""
    match node:
        case ast.Constant():
            return True
        case ast.IfExp(body=one, orelse=other) | ast.BinOp(left=one, op=ast.Add(), right=other):
            return is_constant(one, scope, seen) and is_constant(other, scope, seen)
        case ast.JoinedStr(values=parts):
            values = [part.value if isinstance(part, ast.FormattedValue) else part for part in parts]
            return all(is_constant(value, scope, seen) for value in values)
        case ast.Name(id=name) if name not in seen:
            return all(is_constant(value, scope, seen | {name}) for value in scope.find(name))
    return False


def is_composed(node: ast.expr | None, scope: Scope, known: set[str], seen: frozenset[str] = frozenset()) -> bool:
    """Whether it is made by psycopg's `sql`, in which every part is either a constant or quoted."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="sql"), attr="SQL" | "Identifier" | "Literal")):
            return True  # what is in a sql.SQL is looked at by itself
        case ast.Call(func=ast.Attribute(value=root, attr="format" | "join")):
            return is_composed(root, scope, known, seen)
        case ast.Call(func=ast.Name(id=name)):
            return name in known
        case ast.IfExp(body=one, orelse=other) | ast.BinOp(left=one, op=ast.Add(), right=other):
            return is_composed(one, scope, known, seen) and is_composed(other, scope, known, seen)
        case ast.Name(id=name) if name not in seen:
            found = scope.find(name)
            return all(is_composed(v, scope, known, seen | {name}) or is_constant(v, scope) for v in found)
    return False


def functions(tree: ast.AST, outer: Scope) -> Iterator[tuple[ast.AST, Scope]]:
    """The module and every function of it, each with where its names get their values."""
    yield tree, outer
    for node in own_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from functions(node, scope_of(node, outer))


def pasted_sql(name: str, tree: ast.Module, takers: dict[str, int], makers: set[str]) -> Iterator[tuple[str, str]]:
    """The calls in a module that run SQL, or take some for it, that is neither constant nor composed."""
    for function, scope in functions(tree, scope_of(tree, None)):
        for node in own_nodes(function):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if ast.unparse(node.func) == "sql.SQL":
                if not is_constant(node.args[0], scope):
                    yield name, ast.unparse(node)
            elif called in takers and len(node.args) > takers[called]:
                query = node.args[takers[called]]
                if not is_constant(query, scope) and not is_composed(query, scope, makers):
                    yield name, ast.unparse(node)


def all_pasted_sql(known: dict[str, ast.Module]) -> set[tuple[str, str]]:
    takers = {"execute": 0, "executemany": 0, "copy": 0}
    makers = set()
    for tree in known.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if is_sql(node.returns):
                    makers.add(node.name)
                arguments = [argument for argument in node.args.args if argument.arg != "self"]
                for number, argument in enumerate(arguments):
                    if is_sql(argument.annotation) and node.name != "execute":
                        takers[node.name] = number
    return {found for name, tree in known.items() for found in pasted_sql(name, tree, takers, makers)}


def all_pasted_shell(known: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """Scripts for a shell's -c that are no constant, and whatever else starts a shell."""
    found = set()
    for name, tree in known.items():
        for function, scope in functions(tree, scope_of(tree, None)):
            for node in own_nodes(function):
                if isinstance(node, ast.List | ast.Tuple):
                    words = [getattr(word, "value", None) for word in node.elts]
                    at = next((i for i, word in enumerate(words[:-2]) if word in SHELLS and words[i + 1] == "-c"), None)
                    if at is not None and not is_constant(node.elts[at + 2], scope):
                        found.add((name, ast.unparse(node.elts[at + 2])))
                elif isinstance(node, ast.Call):
                    if any(one.arg == "shell" for one in node.keywords):
                        found.add((name, ast.unparse(node)))
                    if ast.unparse(node.func) in ("os.system", "os.popen", "subprocess.getoutput"):
                        found.add((name, ast.unparse(node)))
    return found


def test_no_sql_is_pasted() -> None:
    assert all_pasted_sql(modules()) == set(ALLOWED_SQL)


def test_no_shell_command_is_pasted() -> None:
    assert all_pasted_shell(modules()) == set(ALLOWED_SHELL)


@pytest.mark.parametrize(
    "code",
    [
        "server.execute(f'DROP DATABASE {name}')",
        "server.execute('DROP DATABASE ' + name)",
        "server.execute('DROP DATABASE %s' % name)",
        "server.execute('DROP DATABASE {}'.format(name))",
        "server.execute(' '.join(['DROP DATABASE', name]))",
        "server.execute(sql.SQL(f'DROP DATABASE {name}'))",
        "server.execute(sql.SQL('DROP DATABASE ' + name).format())",
        "query = 'DROP DATABASE '\n    query += name\n    server.execute(query)",
        "query = f'DROP DATABASE {name}'\n    server.execute(query)",
        "for query in queries:\n        server.execute(query)",
        "server.execute(made(name))",
        "run(f'DROP DATABASE {name}')",
        "cursor.copy(f'COPY {name} TO STDOUT')",
    ],
)
def test_pasted_sql_would_be_found(code: str) -> None:
    helper = "def run(query: LiteralString): server.execute(query)\n"
    tree = ast.parse(f"{helper}def function(name, queries):\n    {code}")
    assert len(all_pasted_sql({"module": tree})) == 1


@pytest.mark.parametrize(
    "code",
    [
        "server.execute('SELECT %s', [name])",
        "server.execute(sql.SQL('DROP DATABASE {}').format(sql.Identifier(name)))",
        "server.execute(sql.SQL('TRUE' if name else 'FALSE'))",
        "query = sql.SQL('DROP DATABASE {}')\n    server.execute(query.format(sql.Identifier(name)))",
        "query = 'SELECT 1' if name else 'SELECT 2'\n    server.execute(query)",
        "server.execute(CONSTANT + ' WHERE true')",
    ],
)
def test_quoted_sql_is_none(code: str) -> None:
    tree = ast.parse(f"CONSTANT = 'SELECT 1'\ndef function(name):\n    {code}")
    assert all_pasted_sql({"module": tree}) == set()


@pytest.mark.parametrize(
    "code",
    [
        "run(['sh', '-c', f'echo {name}'])",
        "run(['docker', 'exec', 'sh', '-c', 'echo ' + name])",
        "run('echo ' + name, shell=True)",
        "os.system('echo ' + name)",
    ],
)
def test_a_pasted_shell_command_would_be_found(code: str) -> None:
    tree = ast.parse(f"def function(name):\n    {code}")
    assert len(all_pasted_shell({"module": tree})) == 1
