"""C++ kernels of many pieces, built together.

Inductor makes a shared library of every kernel for the CPU. Most of such a build is no work on the
kernel: a compiler starts, loads torch's precompiled header and links against torch. Here the
kernels of one lowering wait for each other. With one compile thread they become one library; with
more, each piece's become as many as there are threads, built while the next piece is being written.
The code of a kernel, its flags and the cost of a call are Inductor's own.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .stats import log

Function = Callable[..., Any]

_DEFINITION = re.compile(r'extern "C"\s+void\s+kernel\(')
_INCLUDE = re.compile(r"^[ \t]*#include\b.*$", re.MULTILINE)
_NAME = re.compile(r"\bkernel\b")

_BINDING = """
static PyObject* joined_{i}(PyObject* self, PyObject* args) {{
    try {{
        if (!PyTuple_CheckExact(args) || PyTuple_GET_SIZE(args) != {count}) [[unlikely]]
            throw std::runtime_error("requires a tuple of {count} args");
        joined::n{i}::kernel_{i}({arguments});
        Py_RETURN_NONE;
    }} catch (std::exception const& e) {{
        PyErr_SetString(PyExc_RuntimeError, e.what());
        return nullptr;
    }} catch (...) {{
        PyErr_SetString(PyExc_RuntimeError, "unhandled error");
        return nullptr;
    }}
}}
"""

_TABLE = """
static PyMethodDef joined_methods[] = {{ {rows} }};
static PyObject* joined_functions() {{
    PyObject* all = PyTuple_New({count});
    for (Py_ssize_t i = 0; all && i < {count}; i++) {{
        PyObject* one = PyCFunction_New(&joined_methods[i], nullptr);
        if (!one) {{ Py_DECREF(all); return nullptr; }}
        PyTuple_SET_ITEM(all, i, one);
    }}
    return all;
}}
"""


class Kernel:
    """A kernel that Inductor asked for; a call builds it if nothing did before.

    `argtypes` are the C++ types of its arguments, `source` the code that defines `kernel`; `alone`
    builds it as Inductor would.
    """

    def __init__(self, argtypes: Sequence[str], source: str, alone: Callable[[], Any]) -> None:
        self.argtypes = tuple(argtypes)
        self.source = source
        self._alone = alone
        self._library: Library | None = None
        self._function: Function | None = None

    def function(self) -> Function:
        """The built kernel."""
        if self._function is None:
            library = self._library or Library([self])
            self._function = library.function(self)
        return self._function

    def alone(self) -> Function:
        """The kernel in a library of its own."""
        made = self._alone()
        return made.result() if hasattr(made, "result") else made

    def put_into(self, library: Library) -> None:
        """Note what will hold the kernel."""
        self._library = library

    def __call__(self, *args: Any) -> Any:
        """Run the kernel."""
        return self.function()(*args)


class Library:
    """Kernels in one shared library; `submit` runs its build at once on another thread."""

    def __init__(self, kernels: Sequence[Kernel], submit: Any = None) -> None:
        self._index = {kernel: i for i, kernel in enumerate(kernels)}
        self._lock = threading.Lock()
        self._functions: Sequence[Function] | None = None
        self._result = None
        for kernel in kernels:
            kernel.put_into(self)
        try:
            self._result = _build(kernels, submit)
        except Exception:
            log.debug("kernels could not be joined", exc_info=True)

    def function(self, kernel: Kernel) -> Function:
        """One of the kernels; waits until the library is built."""
        with self._lock:
            if self._functions is None:
                self._functions = self._loaded()
            return self._functions[self._index[kernel]]

    def _loaded(self) -> Sequence[Function]:
        if self._result is not None:
            try:
                return self._result()()
            except Exception:  # what the compiler rejects together may still compile one by one
                log.debug("kernels could not be joined", exc_info=True)
        return [kernel.alone() for kernel in self._index]


class _Joint:
    """What one lowering asked for."""

    def __init__(self) -> None:
        self._kernels: dict[tuple[tuple[str, ...], str], Kernel] = {}
        self._new: list[Kernel] = []
        self._places: list[tuple[dict[str, Any], str, Kernel]] = []

    def ask(self, argtypes: Sequence[str], source: str, alone: Callable[[], Any]) -> Any:
        """A kernel that is built later, or what `alone` gives if it cannot share a library."""
        if not _joinable(source):
            return alone()
        key = tuple(argtypes), source
        if key not in self._kernels:
            self._kernels[key] = Kernel(argtypes, source, alone)
            self._new.append(self._kernels[key])
        return self._kernels[key]

    def loaded(self, scope: dict[str, Any]) -> None:
        """Note where the kernels of a piece are called from; other threads may build them now."""
        from torch._inductor.async_compile import AsyncCompile, get_compile_threads

        self._places += [(scope, name, k) for name, k in scope.items() if isinstance(k, Kernel)]
        if (threads := get_compile_threads()) > 1 and self._new:
            for start in range(min(threads, len(self._new))):
                Library(self._new[start::threads], AsyncCompile.submit)
            self._new = []

    def build(self) -> None:
        """Build what is left and put every kernel where its piece calls it."""
        if self._new:
            Library(self._new)
            self._new = []
        for scope, name, kernel in self._places:
            if scope.get(name) is kernel:
                scope[name] = kernel.function()


_joint: ContextVar[_Joint | None] = ContextVar("joint", default=None)


@contextmanager
def joined() -> Generator[None]:
    """Let Inductor's kernels for the CPU, asked for inside by this thread, share libraries.

    They are ready at the end. Where they cannot be built together each gets a library of its own;
    errors of that build pass through.
    """
    _install()
    joint = _Joint()
    before = _joint.set(joint)
    try:
        yield
    finally:
        _joint.reset(before)
        joint.build()


def _install() -> None:
    """Make Inductor ask the joint of the running thread first; once in a process."""
    from torch._inductor.async_compile import AsyncCompile

    if getattr(AsyncCompile.cpp_pybinding, "ditcache", False):
        return
    pybinding, wait = AsyncCompile.cpp_pybinding, AsyncCompile.wait

    def cpp_pybinding(self: AsyncCompile, argtypes: list[str], source_code: str) -> Any:
        alone = lambda: pybinding(self, argtypes, source_code)  # noqa: E731
        joint = _joint.get()
        return alone() if joint is None else joint.ask(argtypes, source_code, alone)

    def wait_for(self: AsyncCompile, scope: dict[str, Any]) -> None:
        wait(self, scope)
        joint = _joint.get()
        if joint is not None:
            joint.loaded(scope)

    cpp_pybinding.ditcache = True  # pyright: ignore[reportFunctionMemberAccess]
    AsyncCompile.cpp_pybinding = cpp_pybinding
    AsyncCompile.wait = wait_for


def _joinable(source: str) -> bool:
    """Whether a source defines one plain function `kernel` and no macros."""
    plain = len(_DEFINITION.findall(source)) == len(_NAME.findall(source)) == 1
    return plain and "#define" not in source


def _build(kernels: Sequence[Kernel], submit: Any) -> Callable[[], Function]:
    """Give what waits for the library of these kernels and gives its one entry.

    The entry takes nothing and gives a tuple of the kernels as Python functions. `submit` starts
    the build, else waiting does.
    """
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    includes = [line for k in kernels for line in _INCLUDE.findall(k.source)]
    code = [*dict.fromkeys(includes), "namespace joined {"]
    bindings: list[str] = []
    for i, kernel in enumerate(kernels):
        body = _NAME.sub(f"kernel_{i}", _INCLUDE.sub("", kernel.source))
        code.append(f"namespace n{i} {{\n{body}\n}}")
        arguments = ", ".join(
            f"parse_arg<{t.replace('const ', '')}>(args, {n})"
            for n, t in enumerate(kernel.argtypes)
        )
        count = len(kernel.argtypes)
        bindings.append(_BINDING.format(i=i, count=count, arguments=arguments))
    code.append("}\n")
    rows = ", ".join(f'{{"kernel_{i}", joined_{i}, METH_VARARGS, ""}}' for i in range(len(kernels)))
    bindings.append(_TABLE.format(rows=rows, count=len(kernels)))
    text = "".join(bindings).replace("{", "{{").replace("}", "}}")

    class Joined(CppPythonBindingsCodeCache):
        entry_function = "joined_kernels"
        call_entry_function = "return joined_functions();"
        extra_parse_arg = text  # stands where the arguments' parsers are known

    return Joined.load_pybinding_async([], "\n".join(code), submit_fn=submit)
