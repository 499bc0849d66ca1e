"""Prints, as JSON, every module that a preloaded package would import only when one of its functions is called.

It is run as a worker is, `python -P -s late_imports.py INSIDE EXTRA…`, and reads the compiled code of all modules that
were loaded. Told are those of the standard library and of the packages that workers load whole.
"""

import dis
import importlib
import json
import sys
import types

sys.path.insert(0, sys.argv[1])
import preload

preload.preload(sys.argv[2:])
OPCODE, CONSTANT, EXTENDED = (dis.opmap[name] for name in ("IMPORT_NAME", "LOAD_CONST", "EXTENDED_ARG"))


def late(code, package, inside=False):
    """Names that the functions of a module import."""
    instructions = (
        [i for i in dis.get_instructions(code) if i.opcode != EXTENDED] if OPCODE in code.co_code[::2] else []
    )
    for level, names, found in zip(instructions, instructions[1:], instructions[2:], strict=False):
        if found.opcode == OPCODE and level.opcode == names.opcode == CONSTANT:
            name = found.argval
            if level.argval:
                base = package.split(".")[: len(package.split(".")) - level.argval + 1]
                name = ".".join([*base, *filter(None, [name])])
            yield name
            yield from (f"{name}.{member}" for member in names.argval or () if member != "*")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from late(constant, package, inside=True)


found = set()
for name, module in list(sys.modules.items()):
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    if hasattr(loader, "get_code"):
        try:
            code = loader.get_code(name)
        except ImportError:  # the interpreter's own import system has none
            continue
        if code is not None:
            found |= set(late(code, name if hasattr(module, "__path__") else name.rpartition(".")[0]))
missing = []
sys.meta_path.insert(0, preload.Gate(preload._KEPT_OUT - set(sys.argv[2:])))
for name in sorted(found - set(sys.modules)):
    parts = name.split(".")
    if parts[0] in {*sys.stdlib_module_names, *preload._WHOLE} and preload._LEFT_OUT.isdisjoint(parts):
        try:
            importlib.import_module(name)
        except Exception:  # a name in a module that is no module, or one that is not for this machine
            continue
        missing.append(name)
print(json.dumps(missing))
