"""The package on systems that are not Linux: nothing of POSIX alone is needed to import it."""

import ast
import importlib
import os
import pkgutil
import sys
import traceback

import pytest
from support import paths

from noisyml.apps import contract
from noisyml.errors import UserError

#: Modules that Windows lacks.
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
#: Names of `os` and `signal` that Windows lacks, as far as a package like this may want them.
NAMES = {
    *("fork", "forkpty", "getuid", "geteuid", "getgid", "getpgid", "killpg", "mkfifo", "nice"),
    *("pread", "pwrite", "register_at_fork", "sched_getaffinity", "setsid", "statvfs", "sysconf"),
    *("uname", "wait", "waitpid", "WIFSIGNALED", "WTERMSIG", "posix_fallocate", "fchmod"),
    *("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGQUIT"),
}
#: Kills its own copies; `noisyml contract` says where that cannot be.
ALLOWED = {"conformance/suite.py", "conformance/interruption.py"}


def import_all_anew() -> int:
    """Import every module of the package without those of POSIX; the number of modules."""
    for name in [*sys.modules]:
        if name.partition(".")[0] == "noisyml":
            del sys.modules[name]
    for name in MODULES - {"posix"}:
        sys.modules[name] = None
    package = importlib.import_module("noisyml")
    found = [module.name for module in pkgutil.walk_packages(package.__path__, "noisyml.")]
    names = [name for name in found if name.rpartition(".")[2] not in ("__main__", "_kernels")]
    for name in names:
        importlib.import_module(name)
    return len(names)


@pytest.mark.long
def test_every_module_is_imported_without_the_modules_of_posix(tmp_path):
    said = tmp_path / "said.txt"
    child = os.fork()  # other tests keep the modules they have
    if child == 0:
        try:
            said.write_text(str(import_all_anew()))
        except BaseException:
            said.write_text(traceback.format_exc())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert said.read_text().isdigit(), said.read_text()
    assert int(said.read_text()) > 200


def uses(tree: ast.Module) -> set[str]:
    """Modules and names of POSIX alone that a module uses."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} & MODULES
            if node.module in ("os", "signal"):
                found |= {alias.name for alias in node.names} & NAMES
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {node.attr} & NAMES if node.value.id in ("os", "signal") else set()
    return found


@pytest.mark.long
def test_names_of_posix_alone_stand_in_the_contract_alone():
    package = paths.ROOT / "noisyml"
    found = {
        file.relative_to(package).as_posix(): sorted(names)
        for file in package.rglob("*.py")
        if (names := uses(ast.parse(file.read_text(encoding="utf-8"))))
    }
    assert set(found) == ALLOWED, found
    assert uses(ast.parse("import fcntl\nfrom os import fork\nsignal.SIGKILL")) == {
        "fcntl",
        "fork",
        "SIGKILL",
    }


def test_the_contract_says_that_it_needs_a_fork(monkeypatch):
    monkeypatch.delattr("os.fork")
    with pytest.raises(UserError, match=r"cannot make \(no fork\)"):
        contract.main(["prism"])
