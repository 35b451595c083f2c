// Compiles what Python imports when it starts in a page. Pyodide ships its standard library as source, and compiling it
// anew takes most of a cold start. `npm ci` runs this; Pyodide itself compiles, so the byte code is of its own version.

import { readFile, writeFile } from "node:fs/promises";

import { loadPyodide } from "pyodide";

const COMPILE = `
import importlib.util
import io
import sys
import zipfile
from importlib._bootstrap_external import _code_to_hash_pyc  # a pyc that nothing checks against its source

def compiled(library, started):
    """The archive's bytes, the modules in started as byte code."""
    source, buffer = zipfile.ZipFile(library), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for entry in source.infolist():
            content, name = source.read(entry), entry.filename
            module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            if name.endswith(".py") and module in started:
                code = compile(content, f"{library}/{name}", "exec", dont_inherit=True)
                content = bytes(_code_to_hash_pyc(code, importlib.util.source_hash(content), False))
                name += "c"
            target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()

library = next(path for path in sys.path if path.endswith(".zip"))
compiled(library, set(sys.modules))
`;

const path = new URL("../node_modules/pyodide/python_stdlib.zip", import.meta.url);
const python = await loadPyodide();
const result = python.runPython(COMPILE);
await writeFile(path, result.toJs());
console.log(`python_stdlib.zip: compiled, ${(await readFile(path)).length} bytes`);
