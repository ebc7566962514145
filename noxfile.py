"""The project's tasks. ``nox`` alone does what CI does; ``nox --list`` shows the rest.

Environments are kept between runs (``nox -R`` skips installing as well). The installed Pythons run
the tests, the others are skipped, and the last session names both.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "typing", "tests", "uvloop", "once", "docs"]
# No Python is downloaded, and a missing one is not a failure, neither here nor in CI.
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml("pyproject.toml")
SUPPORTED = [
    word.rpartition(" ")[2]
    for word in PYPROJECT["project"]["classifiers"]
    if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", word)
]
# The Python that runs nox is always tested, so that a run without tests cannot look like success.
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = SUPPORTED if HERE in SUPPORTED else [*SUPPORTED, HERE]
# The figure of pyproject.toml is demanded only with these Pythons and all programs of `.ci/run`, as
# in CI.
GATE = ("3.11", "3.12", "3.13")
# Measuring takes a third of the time. What runs on one Python only runs on the oldest or the
# newest.
MEASURED = {GATE[0], GATE[-1], HERE, "once"}
ALL = ".[cli,jobs,redis,speedups]"  # the package with all its extras
# Run on each Python: the tests of the modules, and other tests that depend on the Python.
EACH = ("tests/unit", "tests/whole/test_bulk.py", "tests/whole/test_calls.py")
# Run also on nox's own Python: the tests of the project, and the pages' snippets.
HERE_TOO = ("tests/project", "tests/whole/test_secrets.py", "README.rst", "docs")
# Distributed by files, because the snippets of a page depend on each other.
QUICK = ("-m", "not full and not once", "--numprocesses=auto", "--dist=loadfile")
CODE = ["sinch_conv_async", "tests", "docs", "examples", "benchmarks", "noxfile.py", "conftest.py"]

# The tests start hundreds of processes, which must not compile the package each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The only files that a run tests, for `.ci/run`.
ONLY = os.environ.get("TESTS_ONLY", "").split()

covered: list[str] = []


def group(name: str) -> list[str]:
    """A dependency group as plain requirements: an older pip or uv need not know PEP 735."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def there(*paths: str) -> list[str]:
    return [path for path in paths if (ROOT / path).exists()]


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's check and format, codespell, and the import contracts."""
    session.install("-e", ".[cli]", *group("lint"))
    code = there(*CODE)
    session.run("ruff", "check", *code)
    session.run("ruff", "format", "--check", *code)
    session.run("lint-imports")
    session.run(
        "codespell",
        *code,
        *there("README.rst", "CHANGELOG.rst", "CONTRIBUTING.rst", "SECURITY.rst"),
    )


@nox.session
def typing(session: nox.Session) -> None:
    """Mypy and pyright, both strict, on the package and on a user's file (tests/typing)."""
    session.install("-e", ALL, *group("typing"))
    session.run("mypy")
    # The wheel contains pyright. Without this it asks a registry for a newer one.
    quiet = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    session.run("pyright", env=quiet)


def run_pytest(session: nox.Session, name: str, *runs: tuple[str, ...]) -> None:
    """Run pytest with each of these arguments, with branch coverage where it counts.

    Arguments after ``--`` are run instead, without coverage.
    """
    session.install("-e", ALL, *group("tests"), *group("examples"))
    if session.posargs:
        profile = os.environ.get("HYPOTHESIS_PROFILE", "quick")
        options = ("--numprocesses=auto", *session.posargs)
        session.run("python", "-m", "pytest", *options, env={"HYPOTHESIS_PROFILE": profile})
        return
    for old in ROOT.glob(f".coverage.{name}.*"):
        old.unlink()
    # The whole path, since the command line's processes are started in other folders.
    env = {"COVERAGE_FILE": str(ROOT / f".coverage.{name}")}
    if name not in (HERE, "once") and "HYPOTHESIS_PROFILE" not in os.environ:
        env["HYPOTHESIS_PROFILE"] = "quick"  # a hundred examples each, on one Python, are enough
    run = ("coverage", "run", "-m", "pytest") if name in MEASURED else ("python", "-m", "pytest")
    failed = ROOT / ".pytest_cache/v/cache/lastfailed"
    for arguments in runs:
        failed.unlink(missing_ok=True)
        session.run(*run, *arguments, env=env, success_codes=[0, 1])
        if failed.exists():
            # Tests with real servers run side by side and share two cores. One that fails runs
            # once more, alone, and must pass then. Both runs are in the log.
            session.warn("some tests failed beside others; they run once more, alone")
            again = [word for word in arguments if not word.startswith(("--numproc", "--dist"))]
            session.run(*run, *again, "--last-failed", env=env)
    covered.append(name)
    if name in MEASURED:
        session.notify("coverage")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Each module's tests on each Python; on nox's own Python also the project's and the pages'."""
    where = ONLY or [*EACH, *(HERE_TOO if session.python == HERE else ())]
    run_pytest(session, str(session.python), (*QUICK, *where))


# Most of these tests wait for a server or a process, so several share a core. Tests that need a
# whole core run last.
SHARED = (
    *("-m", "once and not full and not alone"),
    *(f"--numprocesses={3 * (os.cpu_count() or 1)}", "--dist=worksteal"),
)
ALONE = ("-m", "once and not full and alone")
# A worker that imports only the needed files starts in three quarters of the time.
WHOLE = [
    "tests/whole",
    *(f"--ignore={path}" for path in (*EACH, *HERE_TOO) if path.startswith("tests/whole/")),
]


@nox.session
def once(session: nox.Session) -> None:
    """The tests of servers, processes and loads, on one Python only."""
    where = ONLY or WHOLE
    run_pytest(session, "once", (*SHARED, *where), (*ALONE, *where))


@nox.session
def busy(session: nox.Session) -> None:
    """The tests five times (``-- 2``: twice), with every core kept busy (by hand)."""
    session.install("-e", ALL, *group("tests"), *group("examples"))
    runs = int(session.posargs[0]) if session.posargs else 5
    hogs = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    failed = []
    try:
        for run in range(1, runs + 1):
            for what in (
                (*QUICK, *EACH, *HERE_TOO),
                (*SHARED, *WHOLE),
                (*ALONE, *WHOLE),
            ):
                session.log(f"run {run} of {runs}")
                try:
                    session.run("python", "-m", "pytest", "-q", *what)
                except nox.command.CommandFailed:
                    failed.append(run)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    if failed:
        session.error(f"runs with failures: {failed}")


@nox.session
def coverage(session: nox.Session) -> None:
    """The coverage of this run, and what this machine lacks for a whole run."""
    session.install(*group("tests")[:1])
    # Only data of this run: data of an interrupted run must not count.
    data = [
        str(path) for name in covered or ["3", "once"] for path in ROOT.glob(f".coverage.{name}.*")
    ]
    session.run("coverage", "combine", *data)
    # Some lines run on one Python only, or with a server. If these are missing, the figure is shown
    # and nothing fails.
    programs = str(session.run("python", "-m", "tests.programs", silent=True)).split()
    whole = {*GATE, "once"} <= set(covered) and not programs
    least = PYPROJECT["tool"]["coverage"]["report"]["fail_under"] if whole else 0
    session.run("coverage", "report", f"--fail-under={least}")
    tested = [name for name in covered if name in PYTHONS]
    session.log(f"tests ran and passed on Python {', '.join(tested) or '(none in this run)'}")
    pythons = [f"Python {python}" for python in PYTHONS if python not in tested]
    if skipped := [*pythons, *programs]:
        session.warn(f"skipped, not found or not asked for: {', '.join(skipped)}")


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """All tests with exactly the lowest versions that pyproject.toml allows."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    bounds = [
        requirement.replace(">=", "==")
        for requirement in (*project["dependencies"], *extras["cli"], *extras["speedups"])
    ]
    session.install("-e", ALL, *bounds, *group("tests"))
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def newest(session: nox.Session) -> None:
    """All tests with the newest pre-releases of the core's four dependencies (by hand, weekly)."""
    session.install("-e", ALL, *group("tests"), *group("examples"))
    # aiohttp's 4.0 alphas of 2019 and 2020 have a higher number, but no supported Python can import
    # them.
    session.install("--upgrade", "--pre", "aiohttp!=4.0.0a0,!=4.0.0a1", "attrs", "cattrs", "yarl")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(name="next")
def next_aiohttp(session: nox.Session) -> None:
    """The tests with aiohttp's main branch, or the source that AIOHTTP names (by hand, weekly)."""
    source = os.environ.get("AIOHTTP", "git+https://github.com/aio-libs/aiohttp@master")
    session.install("-e", ALL, *group("tests"))
    # Its parser in C is made from files that the repository has not got.
    session.install("--upgrade", source, env={"AIOHTTP_NO_EXTENSIONS": "1"})
    session.run("python", "-c", "import aiohttp; print('aiohttp', aiohttp.__version__)")
    session.run(
        "python", "-m", "pytest", *(session.posargs or ["tests/unit", "tests/whole/test_calls.py"])
    )


# The changes that tests/loops and Python's switches make for the whole suite.
MODES = {
    "uvloop": {"EVENT_LOOP": "uvloop"},
    "eager": {"EVENT_LOOP": "eager"},
    "debug": {"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1"},
    "optimised": {"PYTHONOPTIMIZE": "1"},
}


# All that a call runs through, down to the socket: what another event loop may change.
CALLS = ("tests/unit/_core", "tests/whole/test_calls.py")


def run_mode(session: nox.Session, mode: str, *which: str) -> None:
    session.install(
        "-e", ALL, *group("tests"), *group("examples"), *(["uvloop"] if mode == "uvloop" else [])
    )
    options = list(session.posargs or which) or ["--dist=loadfile", "-m", "not full and not once"]
    options.append("--numprocesses=auto")
    if mode == "optimised":
        # A warning about assertions in files that pytest does not rewrite; it rewrites the tests.
        options += ["-W", "ignore::pytest.PytestConfigWarning"]
    env = {"PYTHONPATH": str(ROOT / "tests" / "loops"), **MODES[mode]}
    session.run("python", "-m", "pytest", *options, env=env)


@nox.session
def uvloop(session: nox.Session) -> None:
    """Calls on uvloop, on one Python; ``nox -s uvloop -- tests`` runs the whole suite on it."""
    if sys.platform == "win32":
        session.skip("uvloop is not for Windows")
    run_mode(session, "uvloop", "-m", "not full", *CALLS)


@nox.session
@nox.parametrize("mode", ["eager", "debug", "optimised"])
def modes(session: nox.Session, mode: str) -> None:
    """The suite with eager tasks, with asyncio's debug mode and ``-X dev``, and with ``-O``."""
    run_mode(session, mode)


@nox.session
def docs(session: nox.Session) -> None:
    """The pages, into docs/_build/html. A warning or a broken reference is an error."""
    session.install("-e", ALL, *group("docs"))
    session.run(
        *("sphinx-build", "--fail-on-warning", "--keep-going", "--nitpicky", "--fresh-env", "-q"),
        *("-b", "html", "docs", "docs/_build/html"),
    )


@nox.session
def linkcheck(session: nox.Session) -> None:
    """Every link of the pages, the outside ones too: needs the network, so by hand."""
    session.install("-e", ALL, *group("docs"))
    session.run("sphinx-build", "-W", "-q", "-b", "linkcheck", "docs", "docs/_build/linkcheck")


@nox.session
def demo(session: nox.Session) -> None:
    """What README's first command shows."""
    session.install("-e", ".[cli]")
    session.run("sinch-conv", "demo", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory, compared with the clients that a user could choose instead."""
    session.install("-e", ALL, *group("bench"))
    session.run("python", "-m", "benchmarks.run", *session.posargs)


@nox.session
def load(session: nox.Session) -> None:
    """Figures of three processes that share a limit, of arrivals, of a large gather (by hand)."""
    session.install("-e", ALL, *group("bench"))
    for module in ("sharing", "pace_on_loopback", "gather"):
        session.run("python", "-m", f"benchmarks.{module}")


@nox.session
def soak(session: nox.Session) -> None:
    """Ten minutes at 800 calls a second with faults mixed in (by hand)."""
    session.install("-e", ALL, *group("tests"))
    session.run("python", "-m", "tests.whole.faults.soak", *session.posargs)


@nox.session
def faults_full(session: nox.Session) -> None:
    """The whole fault matrix; each row first harms a plain aiohttp loop (by hand)."""
    session.install("-e", ALL, *group("tests"))
    which = ("-s", "-m", "full or not full", *session.posargs)
    session.run("python", "-m", "pytest", "tests/whole/faults", *which, env={"FAULTS_NAIVE": "1"})


@nox.session
def fuzz(session: nox.Session) -> None:
    """The fuzz tests with many more examples (by hand)."""
    session.install("-e", ALL, *group("tests"))
    # One test takes many minutes here, and is not a hang.
    options = ("-o", "faulthandler_timeout=0", *session.posargs)
    session.run(
        "python", "-m", "pytest", "-m", "fuzz", *options, env={"HYPOTHESIS_PROFILE": "fuzz"}
    )


@nox.session
def prism(session: nox.Session) -> None:
    """The client against prism, a mock of tests/whole/openapi.yaml (by hand; needs npm)."""
    session.install(".")
    tools = session.create_tmp()
    npm = ("npm", "install", "--no-save", "--no-audit", "--no-fund", "--prefix", tools)
    session.run(*npm, "@stoplight/prism-cli@5", external=True)
    session.run("python", "-m", "tests.whole.prism", f"{tools}/node_modules/.bin/prism")


@nox.session
def mutation(session: nox.Session) -> None:
    """Mutation tests of the pure modules (by hand); lists the mutants that survive."""
    session.install("-e", ALL, *group("tests"), *group("mutation"))
    # The same examples for each mutant, because random examples would kill some by chance.
    session.run("mutmut", "run", *session.posargs, env={"HYPOTHESIS_PROFILE": "ci"})
    session.run("python", "-m", "tests.project.survivors")


def build_into(session: nox.Session, folder: Path) -> tuple[Path, Path]:
    """Builds and checks wheel and sdist; returns their paths."""
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(folder))
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(wheel), str(sdist))
    package = zipfile.ZipFile(wheel).namelist()
    if "sinch_conv_async/py.typed" not in package:
        session.error(f"{wheel.name} has no py.typed")
    ours = ("sinch_conv_async/", f"sinch_conv_async-{PYPROJECT['project']['version']}.dist-info/")
    if strays := [name for name in package if not name.startswith(ours)]:
        session.error(f"{wheel.name} has files that are not the package's: {strays}")
    return wheel, sdist


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and sdist into dist/, checked, and the tests from the unpacked sdist."""
    session.install(*group("release"), *group("tests"), *group("examples"))
    _, sdist = build_into(session, ROOT / "dist")
    unpacked = Path(session.create_tmp()) / "sdist"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    session.install("--force-reinstall", "--no-deps", str(source))
    session.install(f"{source}[cli,speedups]")
    with session.chdir(source):
        session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS, venv_backend="virtualenv", reuse_venv=False)
def release_check(session: nox.Session) -> None:
    """The wheel in an empty environment: its dependencies, README's example, the uninstall."""
    wheels = sorted((ROOT / "dist").glob("*.whl"))
    if not wheels:
        session.error("no wheel in dist/: run `nox -s build` first")
    wheel = wheels[-1]

    session.install(str(wheel))
    seeds = {"pip", "setuptools", "wheel"}  # packages that virtualenv itself may install
    listed = session.run("pip", "list", "--not-required", "--format=freeze", silent=True)
    unneeded = {line.partition("==")[0] for line in str(listed).split() if "==" in line} - seeds
    if unneeded != {"sinch-conv-async"}:
        session.error(f"installed, and needed by nothing: {sorted(unneeded)}")
    session.run("pip", "check")
    session.run("pip", "list")
    # Isolated and outside the tree, so that the installed package is tested.
    with session.chdir(session.create_tmp()):
        session.run(
            "python", "-I", "-c", "import sinch_conv_async; print(sinch_conv_async.__file__)"
        )
    said = session.run("sinch-conv", "demo", success_codes=[1, 2], silent=True)
    if "sinch-conv-async[cli]" not in str(said):
        session.error(f"without its extra the command line does not say what to install: {said!r}")

    session.install(f"{wheel}[cli]")
    session.run(
        "python",
        "-I",
        str(ROOT / "tests" / "project" / "release_check.py"),
        str(ROOT / "README.rst"),
    )

    session.run("pip", "uninstall", "--yes", "sinch-conv-async")
    site = session.run(
        "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", silent=True
    )
    left = [*Path(str(site).strip()).glob("sinch_conv*"), *Path(session.bin).glob("sinch-conv*")]
    if left:
        session.error(f"left behind by the uninstall: {left}")
