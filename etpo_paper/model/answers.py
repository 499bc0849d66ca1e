"""What a chat model is asked, and its answer as an action: the body of `build_model`, or a module that defines it.

`SYSTEM` and `question` ask for the body. Models answer with whatever they like; `extract_body` reads an answer by these
rules:

- An answer that is a complete program as a whole is taken as it is.
- Thoughts (`<think>` up to `</think>`, or to the end) are left out.
- A fence is three or more backticks or tildes, with or without text on its line; its block ends at the first such fence
  at which it is Python (inside of a string it is not), or else at the first. Blocks inside of blocks are read as well.
- What stands outside of the blocks is read too, less the prose around it.
- An answer in JSON is read as the longest text in it.
- Of all that was found, the last that is complete is taken: it is Python, it defines `build_model` or `model`, and it
  uses no name that neither it nor an earlier block binds. Such a block, of imports say, is put in front.
- Above the prompt's own line about the second version, and above a later `build_model`, stands the version that failed;
  it is left out if the rest is complete without it.
- `build_model` with the prompt's parameters and nothing around it but imports is taken as a body, and everything else
  as a module, unchanged but for what follows.
- A module's only function that nothing calls and that takes two arguments is its `build_model` if there is none.
- Below a function without a return, `return model` is added, as below a body.
- Statements that use `build_model` below its definition are examples and are left out, with what only they read.
- If nothing else makes it Python, characters of typography become plain, lines of IPython commands are left out, and a
  first line without indentation gets that of the others.
- What is no Python even so comes through as it is: the environment reports the error, and the model may reflect on it.

The lines of multi-line strings are never moved.
"""

import ast
import builtins
import codeop
import itertools
import json
import re
import symtable
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence

from etpo_paper.environment.prompts import SECOND, SIGNATURE, Prompt, bound_names, is_module, parsed, program

SYSTEM = (
    "You complete a Python file that trains a scikit-learn classifier. The user sends the file with a gap where the "
    "body of the last function belongs. Answer with the lines that fill the gap and with nothing else: no "
    "explanation, no signature, no return statement. Indent them by four spaces, import what you need inside the "
    "function, and leave the fitted classifier in a variable called model."
)
GAP = "    # (the gap)\n"

_THOUGHT = re.compile(r"^[ \t]*<(think\w*|thought|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_THOUGHT_END = re.compile(r"\A.*</(?:think\w*|thought|reasoning)>", re.DOTALL | re.IGNORECASE)
_ONE_LINE = re.compile(r"[ \t]*(`+|~{3,})([^`\n]*[^`\s])\1[ \t]*")  # code between fences on one line
_OPENING = re.compile(r"[ \t]*(`{3,}|~{3,})([^`\n]*)")
_OPENING_IN_TEXT = re.compile(r"(?<![`~])(`{3,}|~{3,})([ \t]*[\w+#.-]*[ \t]*)$")
_LANGUAGE = re.compile(r"[ \t]*\{?\.?(?:i?python[\w.:]*|py\d*)\}?(?=[ \t]|$)", re.IGNORECASE)
_CODE = re.compile(r"[ \t]*(?:import|from|def|class|for|if|try|with)\b|.*(?: = |\()")
_HEAD = re.compile(r"^[ \t]*def build_model\b", re.MULTILINE)
_SIGNATURE = re.compile(r"^([ \t]*)def build_model\b.{0,1000}?:[ \t]*(?:#[^\n]*)?$", re.DOTALL | re.MULTILINE)
_IMPORT = re.compile(r"^(?:import|from) .*$", re.MULTILINE)
_COMMAND = re.compile(r"^[ \t]*[!%]\w.*$", re.MULTILINE)
_TYPOGRAPHY = str.maketrans(
    "\u00a0\u2007\u202f\u3000\u2018\u2019\u201c\u201d", "    ''\"\"", "\u200b\u200c\u200d\u2060\ufeff"
)
_RETURN = ast.dump(ast.parse("return model").body[0])
_TRIES = 9  # fences, paragraphs or depths that are tried; a model that repeats itself may write thousands


def question(prompt: Prompt) -> str:
    """What the user asks in a state: the file with its gap."""
    return prompt.prefix + GAP + prompt.suffix


def extract_body(answer: str) -> str:
    """The action in a chat model's answer, see the module.

    Args:
        answer: the text of the answer.

    Returns:
        A body, indented by four spaces, or a module, either of them ending in a newline; "" if there is none.
    """
    answer = answer.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    whole = _choice([[answer]])
    if whole is not None and not _missing(whole):
        return whole
    answer = _THOUGHT_END.sub("", _THOUGHT.sub("", answer))
    texts = list(_texts(answer))
    chosen = _choice(texts)
    if chosen is not None:
        return chosen
    found = [variants[0] for variants in texts if variants[0].strip()]
    return _no_python(max(found[1:] or found, key=lambda text: ("build_model" in text, len(text)), default=""))


# What an answer holds ------------------------------------------------------------------------------------------------


def _texts(answer: str, depth: int = 0) -> Iterator[list[str]]:
    """The text outside of the blocks, and each block; each in its variants, likeliest first."""
    unwrapped = _from_json(answer)
    if unwrapped is not None:
        yield from _texts(unwrapped, depth + 1)
        return
    blocks, outside = _blocks(answer)
    yield [outside, *_without_prose(outside)]
    for block in blocks:
        inner = _from_json(block) is not None or (_OPENING.search(block) and _plain(block) is None)
        if inner and depth < _TRIES:
            yield from _texts(block, depth + 1)
        else:
            yield [block]


def _from_json(text: str) -> str | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    strings = [value for value in found.values() if isinstance(value, str)] if isinstance(found, dict) else []
    return max(strings, key=len, default=None)


def _blocks(text: str) -> tuple[list[str], str]:
    """The fenced blocks of a text, and what stands outside of them."""
    lines, blocks, outside = text.split("\n"), [], []
    i = 0
    while i < len(lines):
        line = lines[i]
        i += 1
        one_line = _ONE_LINE.fullmatch(line)
        opening = _OPENING.fullmatch(line) or _OPENING_IN_TEXT.search(line)
        if one_line is not None:
            blocks.append(_LANGUAGE.sub("", one_line[2], count=1))
        elif opening is None:
            outside.append(line)
        else:
            before, (fence, rest) = line[: opening.start(1)], opening.groups()
            block, length = _block(lines[i:], fence, _LANGUAGE.sub("", rest, count=1))
            i += length
            if before.strip():
                outside.append(before)
            else:  # the fence of a list's item is indented, and what it holds with it
                block = re.sub(rf"^[ \t]{{0,{len(before)}}}", "", block, flags=re.MULTILINE)
            blocks.append(block)
    return blocks, "\n".join(outside)


def _block(lines: list[str], fence: str, rest: str) -> tuple[str, int]:
    """The block below an opening fence with `rest` on its line, and the number of lines up to its closing fence."""
    first = [rest.lstrip()] if _CODE.match(rest) else []
    closing = re.compile(rf"[ \t]*{fence}{fence[0]}*[ \t]*")
    ends = [k for k, line in enumerate(lines) if closing.fullmatch(line)][:_TRIES] + [len(lines)]
    blocks = ("\n".join([*first, *lines[:k]]) for k in ends)
    found = next((i for i, block in enumerate(blocks) if not block.strip() or _plain(block) is not None), 0)
    return "\n".join([*first, *lines[: ends[found]]]), ends[found] + 1


def _without_prose(text: str) -> Iterator[str]:
    """The text from its first line of code, up to its end or to a paragraph of prose, longest first."""
    lines = text.split("\n")
    prose = [_is_prose(line) for line in lines]
    start = next((i for i, line in enumerate(lines) if line.strip() and not prose[i]), len(lines))
    ends = [i for i in range(start + 1, len(lines)) if prose[i] and (not lines[i - 1].strip() or lines[i][0] == "<")]
    return ("\n".join(lines[start:end]) for end in (len(lines), *reversed(ends[:_TRIES])))


def _is_prose(line: str) -> bool:
    """Whether a line can neither be Python nor begin a statement of several lines."""
    if not line.strip() or line[0].isspace() or line.startswith("return"):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            codeop.compile_command(line)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return True
    return False


# Which of it is meant ------------------------------------------------------------------------------------------------


def _choice(texts: list[list[str]]) -> str | None:
    """The last action that is complete, or else the last one; None if there is none."""
    complete = incomplete = None
    above: list[str] = []  # blocks that are no action, the nearest first
    for variants in texts:
        plain = [code for text in variants for part in _versions(text) if (code := _plain(part)) is not None]
        actions = [(code, action) for code in plain if (action := _action(code)) is not None]
        if not actions:
            above[:0] = plain[:1]
            continue
        whole = [done for code, action in actions if (done := _completed(code, action, above)) is not None]
        complete = whole[0] if whole else complete
        incomplete = actions[0][1]
    return incomplete if complete is None else complete


def _versions(text: str) -> list[str]:
    """The text without the versions that failed, and the whole."""
    parts = [text.rpartition(SECOND)[2]] if SECOND in text else []
    heads = [match.start() for match in _HEAD.finditer(text)]
    if len(heads) > 1 and parsed(text) is None:
        imports = _IMPORT.findall(text[: heads[-1]])
        parts.append("\n".join([*imports, text[heads[-1] :]]))
    return [*parts, text]


def _completed(code: str, action: str, above: list[str]) -> str | None:
    """The action with those blocks in front that bind a name that it lacks; None if it still lacks one."""
    missing = _missing(action)
    for block in above:
        tree = parsed(block)
        if missing and tree is not None and missing & bound_names(tree.body):
            code = f"{block}\n{code}"
            action = _action(code) or action
            missing = _missing(action)
    return None if missing else action


def _missing(action: str) -> set[str]:
    """The names that a program uses and nothing binds."""
    source = program(action)
    tree = parsed(source)
    if tree is None or any(isinstance(n, ast.ImportFrom) and n.names[0].name == "*" for n in ast.walk(tree)):
        return set()
    bound, read, read_later = _names(source)
    if not is_module(action):  # a body is not meant to call the function that it fills
        bound.discard("build_model")
    return (read | read_later) - bound - set(dir(builtins)) - {"__name__", "__file__"}


def _names(source: str) -> tuple[set[str], set[str], set[str]]:
    """The global names that a program binds, those that it reads at once, and those that its functions read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            top = symtable.symtable(source, "action", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(), set(), {""}  # what no program can run is complete in no way
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    read = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    read_later: set[str] = set()
    tables = top.get_children()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        outer = [s for s in table.get_symbols() if s.is_global()]
        bound |= {s.get_name() for s in outer if s.is_assigned() or s.is_imported()}
        read_later |= {s.get_name() for s in outer if s.is_referenced()}
    return bound, read, read_later


# From Python to an action --------------------------------------------------------------------------------------------


def _plain(text: str) -> str | None:
    """The text as Python in column 0, or None if it cannot be read as such."""
    text = text.strip("\n").rstrip()
    simple = _COMMAND.sub("", text.translate(_TYPOGRAPHY)).strip("\n")
    for variant in dict.fromkeys((text, _first_line_indented(text), simple, _first_line_indented(simple))):
        code = _dedented(variant)
        if code is not None:
            return code if code.strip() else None
    return None


def _first_line_indented(text: str) -> str:
    """The text with its first line as deep as the least deep of the others.

    A model that continues behind the four spaces of the prompt leaves them out in its first line and nowhere else.
    """
    first, _, rest = text.partition("\n")
    depths = [_depth(line) for line in rest.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    return min(depths, key=len, default="") + text if _depth(first) == "" else text


def _dedented(text: str) -> str | None:
    """The text with its outermost lines in column 0, or None if it is no Python."""
    code = [line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    depth = _depth(code[0]) if code else ""
    if not depth:
        return None if parsed(text) is None else text
    tree = parsed(f"if 1:\n{text}")
    if tree is not None and len(tree.body) == 1:
        return _moved(text, tree, 1, lambda line: line.removeprefix(depth))
    # Below the body the text goes on in column 0, as the file would.
    file = SIGNATURE + text
    return None if parsed(file) is None else file


def _moved(text: str, tree: ast.Module, above: int, move: Callable[[str], str]) -> str:
    """The text with each line moved that does not begin inside of a string; the tree has lines `above` the text."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)):
            inside.update(range(node.lineno + 1 - above, (node.end_lineno or 0) + 1 - above))
    return "\n".join(line if i in inside else move(line) for i, line in enumerate(text.split("\n"), start=1))


def _depth(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _action(code: str) -> str | None:
    """The action that Python code is, or None for code that fits nothing."""
    tree = parsed(code)
    if tree is None:
        return None
    bound = bound_names(tree.body)
    if "build_model" in bound:
        return _module(_without_replaced(code), "build_model")
    fits = "model" in bound or any(isinstance(statement, ast.Return) for statement in tree.body)
    body = _body(code) if fits else None
    if body is not None and not _missing(body):
        return body
    function = _only_function(tree)
    return body if function is None else _module(code, function)


def _only_function(tree: ast.Module) -> str | None:
    """The one function that takes two arguments and that no other function or class uses."""
    scopes = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    found = [
        function.name
        for function in scopes
        if isinstance(function, ast.FunctionDef)
        and _takes_two(function.args)
        and not any(_uses(other, function.name) for other in scopes if other is not function)
    ]
    return found[0] if len(found) == 1 else None


def _takes_two(a: ast.arguments) -> bool:
    names = len(a.posonlyargs) + len(a.args)
    return names - len(a.defaults) <= 2 and (names >= 2 or a.vararg is not None) and None not in a.kw_defaults


def _uses(node: ast.AST, name: str) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load) for n in ast.walk(node))


def _body(code: str) -> str:
    """The body without a final `return model`, which the environment adds itself."""
    last = ast.parse(code).body[-1]
    if isinstance(last, ast.Return) and ast.dump(last) == _RETURN and last.col_offset == 0:
        code = "\n".join(code.split("\n")[: last.lineno - 1])
    code = _moved(code, ast.parse(code), 0, lambda line: "    " + line if line.strip() else "").strip("\n")
    return code + "\n" if code.strip() else ""


def _module(code: str, entry: str) -> str:
    """The module whose function `entry` is its `build_model`; as a body if it is the same as one."""
    code = _without_examples(code, entry)
    tree = ast.parse(code)
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == entry]
    if functions:
        body = _inner(code, tree, functions[0])
        if body is not None:
            return _body(body)
        code = _with_return(code, functions[-1])
    return code + ("\n" if entry == "build_model" else f"\n\n\nbuild_model = {entry}\n")


def _without_replaced(code: str) -> str:
    """The module without definitions of `build_model` that a later one replaces before anything uses them."""
    statements = ast.parse(code).body
    at = [i for i, statement in enumerate(statements) if "build_model" in bound_names([statement])]
    replaced = [statements[i] for i in at[:-1] if isinstance(statements[i], ast.FunctionDef)]
    if any(_uses(other, "build_model") for other in statements[: at[-1]] if other not in replaced):
        return code
    return _without(code, replaced)


def _without(code: str, statements: Sequence[ast.stmt]) -> str:
    lines = code.split("\n")
    for statement in reversed(statements):
        del lines[_first_line(statement) - 1 : statement.end_lineno]
    return "\n".join(lines).strip("\n")


def _first_line(statement: ast.stmt) -> int:
    return min([statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", []))])


def _without_examples(code: str, entry: str) -> str:
    """The module without the statements that show how the function is used."""
    statements = ast.parse(code).body
    at = max(i for i, statement in enumerate(statements) if entry in bound_names([statement]))
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    below = [statement for statement in statements[at + 1 :] if not isinstance(statement, definitions)]
    if not any(_uses(statement, entry) for statement in below):
        return code
    _, _, read_later = _names(code)
    return _without(code, [statement for statement in below if not bound_names([statement]) & read_later])


def _inner(code: str, tree: ast.Module, function: ast.FunctionDef) -> str | None:
    """The inside of a function, imports first; None if the module does more than import and define it."""
    a = function.args
    others = [n for n in tree.body if n is not function]
    if ast.get_docstring(tree) is not None:
        del others[0]
    if (
        [arg.arg for arg in a.posonlyargs + a.args] != ["x_train", "y_train"]
        or a.defaults or a.vararg or a.kwonlyargs or a.kwarg or function.decorator_list
        or not all(isinstance(n, ast.Import | ast.ImportFrom) for n in others)
        or any(isinstance(n, ast.ImportFrom) and (n.module == "__future__" or n.names[0].name == "*") for n in others)
    ):  # fmt: skip
        return None
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return None
    lines = code.split("\n")
    first = _first_line(body[0])
    inner = lines[first - 1 : body[-1].end_lineno]
    if first == function.lineno:  # def build_model(...): model = ...
        inner[0] = inner[0].encode()[body[0].col_offset :].decode()
    else:
        comments = lines[function.lineno : first - 1]
        while comments and comments[-1].lstrip().startswith("#"):
            inner.insert(0, comments.pop())
    plain = _dedented("\n".join(inner))
    imports = ["\n".join(lines[n.lineno - 1 : n.end_lineno]) for n in others]
    return None if plain is None else "\n".join([*imports, plain])


def _with_return(code: str, function: ast.FunctionDef) -> str:
    """The module with `return model` at the end of a function that binds `model` and returns nothing."""
    nodes, inner = [], list[ast.AST](function.body)
    while inner:
        node = inner.pop()
        nodes.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            inner += ast.iter_child_nodes(node)
    if "model" not in bound_names(function.body) or any(isinstance(node, ast.Return) for node in nodes):
        return code
    first, last = function.body[0], function.body[-1]
    lines, end = code.split("\n"), last.end_lineno or 0
    if first.lineno == function.lineno:
        line = lines[end - 1].encode()
        lines[end - 1] = (line[: last.end_col_offset] + b"; return model" + line[last.end_col_offset or 0 :]).decode()
    else:
        lines.insert(end, _depth(lines[first.lineno - 1]) + "return model")
    return "\n".join(lines)


def _no_python(text: str) -> str:
    """What is no Python, as a body: of a function that was cut short or is broken, its lines and the imports above."""
    signatures = list(_SIGNATURE.finditer(text))
    if signatures:
        before, depth = text[: signatures[-1].start()], len(signatures[-1][1])
        lines = text[signatures[-1].end() :].strip("\n").split("\n")
        inner = itertools.takewhile(lambda line: not line.strip() or len(_depth(line)) > depth, lines)
        text = "\n".join([*_IMPORT.findall(before), textwrap.dedent("\n".join(inner))])
    text = textwrap.dedent(text.strip("\n")).rstrip()
    return textwrap.indent(text, "    ") + "\n" if text else ""
