"""Sizes, names, docstrings, and calls that no file may make. CONTRIBUTING.md lists the rules."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

MOST_CODE_LINES = 17_500  # of opensora/ in all
MOST_FILE_LINES = 350
MOST_FUNCTION_LINES = 60  # of the body
MOST_PARAMETERS = 8
CODE_FOLDERS = ("opensora/", "scripts/", "tools/", "eval/", "gradio/", "benchmarks/")
BANNED_NAMES = {"utils.py", "misc.py", "common.py", "helpers.py"}
BANNED_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
PRESET = re.compile(r"[A-Za-z0-9]+-[A-Za-z0-9]+/\w+")
# Written in pieces, so that this file passes its own test.
HOSTS = (
    "py" + "pi.org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "download.py" + "torch.org",
    "ana" + "conda.org",
)
MACHINE_PATHS = (
    "wo" + "rk/",
    "fa" + "rm/",
    "tm" + "p/",
    "ro" + "ot/",
    "ho" + "me/",
    "Us" + "ers/",
    "op" + "t/py",
    "op" + "t/wh",
)
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold code: no blanks, comments and docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def registered(node: ast.AST) -> list[ast.Call]:
    """Return the `register_module` calls among the decorators."""
    found = getattr(node, "decorator_list", [])
    return [call for call in found if isinstance(call, ast.Call) and _name(call.func) == "register_module"]


def check_sizes(path: str, source: str) -> list[str]:
    """Report files and functions that are too long, and functions with too many parameters."""
    lines, tree = code_lines(source), ast.parse(source)
    wrong = []
    if len(lines) > MOST_FILE_LINES:
        wrong.append(f"{path}: {len(lines)} lines of code, at most {MOST_FILE_LINES}; split it by noun.")
    free = {
        id(method)
        for node in ast.walk(tree)
        if registered(node)
        for method in (node.body if isinstance(node, ast.ClassDef) else [node])
        if not isinstance(node, ast.ClassDef) or getattr(method, "name", "") == "__init__"
    }
    for node in ast.walk(tree):
        if not isinstance(node, Function):
            continue
        length = len(lines & set(range(node.body[0].lineno, node.end_lineno + 1)))
        if length > MOST_FUNCTION_LINES:
            wrong.append(
                f"{path}:{node.lineno}: {node.name} has {length} lines, at most {MOST_FUNCTION_LINES}."
            )
        names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > MOST_PARAMETERS and id(node) not in free:
            wrong.append(
                f"{path}:{node.lineno}: {node.name} takes {count} parameters, at most {MOST_PARAMETERS}; "
                "make a dataclass of those that belong together."
            )
    return wrong


def check_calls(path: str, tree: ast.AST) -> list[str]:
    """Report what can run foreign code, hide an error, or invent a default."""
    wrong = []
    for node in ast.walk(tree):
        at = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            banned = BANNED_IMPORTS & {name.split(".")[0] for name in _imported(node)}
            wrong += [f"{at}: imports {name}; write safetensors or JSON." for name in banned]
        elif isinstance(node, ast.Raise) and not path.startswith("tests/") and _says_nothing(node.exc):
            wrong.append(f"{at}: an error without a message; say value, expectation and remedy.")
        elif isinstance(node, ast.ExceptHandler):
            broad = node.type is None or _name(node.type) in ("Exception", "BaseException")
            if broad and all(isinstance(part, ast.Pass | ast.Continue) for part in node.body):
                wrong.append(f"{at}: swallows every error; name the one that is meant.")
        elif isinstance(node, ast.Call):
            wrong += [f"{at}: {what}" for what in _bad_call(node, path)]
    return wrong


def check_public(path: str, tree: ast.Module) -> list[str]:
    """Report public classes and functions without a docstring, or with a bare signature."""
    wrong = [] if ast.get_docstring(tree) else [f"{path}: the file has no docstring."]
    holders = [
        tree,
        *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")),
    ]
    for holder in holders:
        for node in holder.body:
            if (
                not isinstance(node, ast.ClassDef | Function)
                or node.name.startswith("_")
                and node.name != "__init__"
            ):
                continue
            at = f"{path}:{node.lineno}: {node.name}"
            if not ast.get_docstring(node) and node.name != "__init__":
                wrong.append(f"{at} has no docstring.")
            if isinstance(node, Function):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
                bare += [] if node.returns is not None else ["the result"]
                wrong += [f"{at}: {', '.join(bare)} without annotation."] if bare else []
    return wrong


def check_registered_names(path: str, tree: ast.AST) -> list[str]:
    """Report registered names that are neither the class's name nor a preset like `STDiT3-XL/2`."""
    wrong = []
    for node in ast.walk(tree):
        for call in registered(node):
            given = [key.value for key in call.keywords if key.arg == "name"] + call.args[:1]
            values = [part for value in given for part in getattr(value, "elts", [value])]
            names = [value.value for value in values if isinstance(value, ast.Constant)]
            if not values and not isinstance(node, ast.ClassDef):
                wrong.append(
                    f"{path}:{node.lineno}: {node.name}: a function needs a preset name, Family-Size/patch."
                )
            for name in names:
                if name != node.name and not PRESET.fullmatch(name):
                    wrong.append(f"{path}:{node.lineno}: {name!r}: use {node.name!r}, or Family-Size/patch.")
    return wrong


def check_text(path: str, text: str) -> list[str]:
    """Report paths of one machine and hosts of package registries."""
    wrong = []
    for number, line in enumerate(text.split("\n"), 1):
        wrong += [f"{path}:{number}: names the host {host}" for host in HOSTS if host in line]
        for folder in MACHINE_PATHS:
            if re.search(rf"(?<![\w.$}}\])*/-])/{folder}", line):
                wrong.append(f"{path}:{number}: a path of one machine, /{folder}")
    return wrong


def _name(node: ast.AST) -> str:
    return getattr(node, "attr", None) or getattr(node, "id", "")


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    # The error alone can be caught without unpickling anything.
    return [] if [alias.name for alias in node.names] == ["UnpicklingError"] else [node.module or ""]


def _says_nothing(exc: ast.expr | None) -> bool:
    if isinstance(exc, ast.Call):
        return not exc.args and not exc.keywords and _name(exc.func)[:1].isupper()
    return isinstance(exc, ast.Name | ast.Attribute) and _name(exc)[:1].isupper()


def _bad_call(call: ast.Call, path: str) -> list[str]:
    core, runs = path.startswith("opensora/"), path.startswith(CODE_FOLDERS)
    name, options = _name(call.func), {key.arg: ast.unparse(key.value) for key in call.keywords}
    plain = isinstance(call.func, ast.Name)
    owner = _name(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    wrong = []
    if (plain and name in ("eval", "exec")) or (name == "eval" and call.args and not plain):
        wrong.append(f"{name}() runs text as code; parse it.")
    if (
        options.get("shell") == "True"
        or (owner == "os" and name in ("system", "popen"))
        or name == "getoutput"
    ):
        wrong.append("a shell string; pass a list of arguments.")
    if owner == "torch" and name == "load" and options.get("weights_only") != "True":
        wrong.append("torch.load without weights_only=True.")
    if options.get("allow_pickle") == "True" or name in ("read_pickle", "to_pickle"):
        wrong.append("reads or writes a pickle.")
    if owner == "yaml" and name in ("load", "unsafe_load", "full_load"):
        wrong.append("use yaml.safe_load.")
    if runs and name == "get" and owner in ("cfg", "config"):
        wrong.append("cfg.get invents a default; put the key into a _base_ config and read it.")
    if core and plain and name == "print":
        wrong.append("print in the library; use opensora.utils.logging.get_logger().")
    return wrong


@pytest.fixture(scope="module")
def sources(root: Path, repo_files: list[str]) -> dict[str, str]:
    return {name: (root / name).read_text(encoding="utf-8") for name in repo_files if name.endswith(".py")}


def test_sizes(complain, sources):
    complain([line for path, source in sources.items() for line in check_sizes(path, source)])


def test_size_of_the_core(sources):
    total = sum(len(code_lines(source)) for path, source in sources.items() if path.startswith("opensora/"))
    assert 0 < total < MOST_CODE_LINES


def test_calls(complain, sources):
    complain([line for path, source in sources.items() for line in check_calls(path, ast.parse(source))])


def test_public_things_are_described(complain, sources):
    code = {path: source for path, source in sources.items() if path.startswith(CODE_FOLDERS)}
    complain([line for path, source in code.items() for line in check_public(path, ast.parse(source))])


def test_registered_names(complain, sources):
    core = {path: source for path, source in sources.items() if path.startswith("opensora/")}
    complain(
        [line for path, source in core.items() for line in check_registered_names(path, ast.parse(source))]
    )


def test_file_names(complain, repo_files):
    complain([name for name in repo_files if name.rsplit("/", 1)[-1] in BANNED_NAMES])


def test_no_machine_paths_and_hosts(complain, root, repo_files):
    wrong = []
    for name in repo_files:
        content = (root / name).read_bytes()
        if b"\0" not in content[:4096] and len(content) < 1_000_000:
            wrong += check_text(name, content.decode("utf-8", errors="replace"))
    complain(wrong)


def test_code_lines_leave_out_what_is_not_code():
    top = '"""Doc\n\nmore."""\n\n# why\nx = """a\nb"""  # c\n\n\n'
    source = top + 'def f():\n    """Doc."""\n    return (\n        1\n    )\n'
    assert code_lines(source) == {6, 7, 10, 12, 13, 14}


LONG = "x = 1\n" * (MOST_FILE_LINES + 1)
FUNCTION = "def f():\n" + "    x = 1\n" * (MOST_FUNCTION_LINES + 1)
NINE = ", ".join("abcdefghi")


@pytest.mark.parametrize(
    "source", [LONG, FUNCTION, f"def f({NINE}): pass", f"class A:\n def __init__(self, {NINE}): pass"]
)
def test_size_checker_sees(source):
    assert len(check_sizes("a.py", source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        f"@MODELS.register_module()\nclass A:\n def __init__(self, {NINE}): pass",
        f"class A:\n def f(self, {NINE[3:]}): pass",
        "def f():\n" + "    x = 1\n\n    # why\n" * MOST_FUNCTION_LINES,
    ],
)
def test_size_checker_lets_pass(source):
    assert check_sizes("a.py", source) == []


def test_registered_class_is_free_in_init_only():
    assert check_sizes("a.py", f"@MODELS.register_module()\nclass A:\n def f(self, {NINE}): pass")


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('1')",
        "frame.eval('a + b')",
        "import pickle",
        "from pickle import loads",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
        "os.popen('ls')",
        "torch.load('a.pt')",
        "torch.load('a.pt', weights_only=False)",
        "np.load('a.npy', allow_pickle=True)",
        "pd.read_pickle('a')",
        "yaml.load(text)",
        "cfg.get('seed', 1)",
        "self.cfg.get('seed')",
        "print('x')",
        "raise ValueError",
        "raise ValueError()",
        "raise errors.BadClip",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_call_checker_sees(source):
    assert len(check_calls("opensora/a.py", ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "from pickle import UnpicklingError",
        "torch.load('a.pt', map_location='cpu', weights_only=True)",
        "subprocess.run(['ls'])",
        "headers.get('x')",
        "raise ValueError('seed=-1: give a number >= 0.')",
        "try:\n    f()\nexcept ValueError as error:\n    raise error",
        "try:\n    f()\nexcept ValueError:\n    raise",
    ],
)
def test_call_checker_lets_pass(source):
    assert check_calls("opensora/a.py", ast.parse(source)) == []


def test_print_is_free_outside_the_core():
    assert check_calls("scripts/train.py", ast.parse("print('x')")) == []


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        '"""Doc."""\ndef f() -> None: pass',
        '"""Doc."""\nclass A: pass',
        '"""Doc."""\nclass A:\n    """Doc."""\n    def f(self) -> None: pass',
        '"""Doc."""\ndef f(a) -> None:\n    """Doc."""',
        '"""Doc."""\ndef f(a: int):\n    """Doc."""',
    ],
)
def test_public_checker_sees(source):
    assert len(check_public("a.py", ast.parse(source))) == 1


def test_public_checker_lets_private_things_pass():
    source = '"""Doc."""\ndef _f(a): pass\nclass _A: pass\n'
    source += 'class B:\n    """Doc."""\n    def __init__(self) -> None: pass'
    assert check_public("a.py", ast.parse(source)) == []


@pytest.mark.parametrize(
    ("decorator", "fine"),
    [
        ("@MODELS.register_module()", True),
        ("@MODELS.register_module(name='DiT')", True),
        ("@MODELS.register_module(name=['DiT', 'DiT-XL/2', 'DiT-XL/1x2x2'])", True),
        ("@MODELS.register_module(name='dit')", False),
        ("@MODELS.register_module('DiT_XL')", False),
    ],
)
def test_registered_name_checker(decorator, fine):
    assert (check_registered_names("a.py", ast.parse(f"{decorator}\nclass DiT: pass")) == []) is fine


def test_registered_function_needs_a_preset_name():
    assert check_registered_names("a.py", ast.parse("@MODELS.register_module()\ndef dit_xl(): pass"))


def test_text_checker_sees():
    bad = [f"see /{MACHINE_PATHS[0]}main", f"'/{MACHINE_PATHS[2]}x'", f"https://{HOSTS[0]}/simple"]
    assert all(len(check_text("a.md", line)) == 1 for line in bad)
    assert check_text("a.md", f"docs/{MACHINE_PATHS[0]}x and tests/{MACHINE_PATHS[2]}x") == []
