"""Every public name is in the reference, and its docstring says what a caller has to know.

Read from the source, as the reference is: what each name, parameter and field is, the unit of each
quantity, and each error that a body raises by name.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
PUBLIC = ("aiomigrate", "aiomigrate.api", "aiomigrate.testing")
"""The modules whose `__all__` is a promise; what else there is may change ..."""
LISTENING = (
    "Address",
    "AddressError",
    "ListenFailed",
    "Listener",
    "TcpAddress",
    "TransportError",
    "UnixAddress",
    "listen",
    "parse_address",
)
"""... but for what of `aiomigrate.transport` an embedder needs who brings a listener, and ..."""
WRITTEN = {
    "aiomigrate.api.events": ("Event",),
    "aiomigrate.journal": ("Record", "Standing"),
    "aiomigrate.memory.manifest": ("Given", "Manifest", "StoredFile", "Taken"),
}
"""... for what is written for others to read."""

_UNIT = re.compile(
    r"(_s|_ms|_bytes|percent)$|"
    r"\b(bytes?|pages?|seconds?|milliseconds|percent|bits?|number|errno|times|how many|port"
    r"|descriptors?|ranges|threads|slot"
    r"|from 0|0 to 1|1 to \d+|MiB/s)\b",
    re.IGNORECASE,
)


def docstring(item: griffe.Object) -> str:
    return item.docstring.value if item.docstring is not None else ""


def load() -> griffe.ModulesCollection:
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    loader.load("aiomigrate", try_relative_path=False)
    loader.resolve_aliases()
    return loader.modules_collection


def public_names() -> Iterator[tuple[str, griffe.Object]]:
    """Each public name, by the path that users write, and what it stands for."""
    modules = load()
    exported = {module: modules[module].exports or () for module in PUBLIC}
    others = {"aiomigrate.transport": LISTENING, **WRITTEN}
    for module, exports in {**exported, **others}.items():
        for export in exports:
            name = str(export)
            if not name.startswith("_"):
                found = modules[module][name]
                target = found.final_target if found.is_alias else found
                yield f"{module}.{name}", target


NAMES = dict(public_names())
HOOKS = {
    name: docstring(member)
    for item in NAMES.values()
    if isinstance(item, griffe.Class) and any(str(base) == "Protocol" for base in item.bases)
    for name, member in item.functions.items()
}
"""What the protocols of embedding say of their methods: whoever has these need not say it again."""


def shortcomings(path: str, item: griffe.Object) -> Iterator[str]:
    """What the docstrings of a public name leave open."""
    text = docstring(item)
    if not text:
        yield f"{path}: no docstring"
    if isinstance(item, griffe.Class):
        yield from of_class(path, item, text)
    elif isinstance(item, griffe.Function):
        yield from of_function(path, item, text)


def of_class(path: str, item: griffe.Class, text: str) -> Iterator[str]:
    text = "\n".join([text, *(docstring(base) for base in item.mro())])
    fields = "\n".join(f"{key}: {docstring(value)}" for key, value in item.attributes.items())
    for name, member in item.members.items():
        where = f"{path}.{name}"
        if member.is_alias:
            continue
        if isinstance(member, griffe.Function) and name in {"__init__", "__post_init__"}:
            made = "dataclass" in item.labels  # the parameters are its fields
            described = "\n".join([text, docstring(member), fields])
            yield from of_function(path, member, described, parameters=not made)
        elif name.startswith("_"):
            continue
        elif isinstance(member, griffe.Function):
            if not docstring(member):
                yield f"{where}: no docstring"
            around = "\n".join([text, HOOKS.get(name, ""), fields])
            yield from of_function(where, member, docstring(member), around)
        elif isinstance(member, griffe.Attribute):
            told = docstring(member) or (text if re.search(rf"`{name}\b", text) else "")
            if not told:
                yield f"{where}: no docstring"
            yield from unit(where, name, member.annotation, told + text)


def of_function(
    path: str, item: griffe.Function, text: str, around: str = "", *, parameters: bool = True
) -> Iterator[str]:
    for parameter in item.parameters if parameters else ():
        name = parameter.name.lstrip("*")
        if name in {"self", "cls"}:
            continue
        if not re.search(rf"\b{name}\b", text + around):
            yield f"{path}({name}): not described"
        yield from unit(f"{path}({name})", name, parameter.annotation, text + around)
    for error in raised(item):
        if error not in text + around:
            yield f"{path}: raises {error} and does not say so"


def unit(path: str, name: str, annotation: str | griffe.Expr | None, text: str) -> Iterator[str]:
    if re.search(r"\b(int|float)\b", str(annotation)) and not (
        _UNIT.search(name) or _UNIT.search(text)
    ):
        yield f"{path}: a quantity without a unit"


def raised(item: griffe.Function) -> set[str]:
    """The errors that a body raises by name, without those of functions inside of it."""
    body = ast.parse(item.source.lstrip() if item.lineno else "").body
    found = set()
    todo: list[ast.AST] = list(ast.iter_child_nodes(body[0])) if body else []
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func)
            if name[0].isupper() and name != "NotImplementedError":
                found.add(name)
        todo.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("path", NAMES)
def test_it_says_what_a_caller_has_to_know(path: str) -> None:
    assert list(shortcomings(path, NAMES[path])) == []


def test_each_public_name_is_in_the_reference_once() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert sorted(re.findall(r"^::: (\S+)$", text, re.MULTILINE)) == sorted(NAMES)


def test_each_package_is_public_or_said_not_to_be() -> None:
    packages = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for init in (ROOT / "aiomigrate").rglob("__init__.py")
    }
    index = (ROOT / "docs" / "reference" / "index.md").read_text()
    private = re.findall(r"^\| `(aiomigrate\.\w+)` \|", index, re.MULTILINE)
    assert sorted([*PUBLIC, *private]) == sorted(packages)
