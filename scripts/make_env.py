"""Sets up everything that mmprune3d needs in .venv, on a machine that has Python 3.11 and a C++ compiler.

``make env`` runs it; the standard library is all it uses. A set-up that is up to date is recognised at once, an
interrupted one goes on where it stopped, and the built mmcv wheel is shared between checkouts through a cache folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
LOG = VENV / 'setup.log'
DONE = VENV / 'setup.json'
LOCK = ROOT / 'requirements' / 'lock-cpu.txt'
MMCV = '2.1.0'
# What torch needs to be imported and mmcv to be built; all of it is in the lock.
FOUNDATION = {
    *('torch', 'numpy', 'filelock', 'fsspec', 'jinja2', 'markupsafe', 'mpmath', 'networkx', 'sympy'),
    *('typing-extensions', 'setuptools', 'wheel', 'ninja', 'psutil', 'packaging'),
}
APT = 'sudo apt install python3.11 python3.11-venv python3.11-dev g++ make'
HINTS = (
    (r'No space left on device', 'The disk is full; about 6 GB are needed. Free some and run `make env` again.'),
    (r'Python\.h: No such file', f'The headers of Python are missing. Type: {APT}'),
    (r'Killed|internal compiler error|cannot allocate memory', 'Not enough memory. Type: make env JOBS=1'),
    (r'(?i)connection|timed out|name resolution|SSLError', 'The network failed. Run `make env` again, it goes on.'),
    (r'No matching distribution', 'A locked version cannot be found. Check that pip reaches a package index.'),
    (r'lib(cu\w+|nvrtc|nvToolsExt)[\w-]*\.so', 'pip found a CUDA build of torch. Type: make env TORCH_INDEX=<address>, '
     "with the address of PyTorch's CPU packages (pytorch.org, Get Started, pip, CPU)."),
)  # fmt: skip


class SetupError(Exception):
    """A step that failed; the message says what to do."""


def missing_tools(wheel_cached: bool) -> list[str]:
    """What this machine lacks, one sentence each.

    Args:
        wheel_cached: Whether a built mmcv is at hand, so that no compiler is needed.
    """
    lacks = []
    if sys.version_info[:2] != (3, 11):
        lacks.append(f'Python 3.11 is needed, this is {sys.version.split()[0]}. Type: {APT}  (or: make env PYTHON=...)')
    if any(importlib.util.find_spec(name) is None for name in ('venv', 'ensurepip')):
        lacks.append(f'Python has no venv module. Type: {APT}')
    if not wheel_cached:
        compiler = os.environ.get('CXX', 'c++').split()[0]
        if not any(shutil.which(name) for name in (compiler, 'g++', 'clang++')):
            lacks.append(f'There is no C++ compiler. Type: {APT}')
        if not Path(sysconfig.get_path('include'), 'Python.h').is_file():
            lacks.append(f'The headers of Python are missing. Type: {APT}')
    return lacks


def wheel_folder(torch_version: str) -> Path:
    """The cache folder of the mmcv wheel that fits one torch, this Python and this platform."""
    base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    python = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    name = f'mmcv-{MMCV}_torch-{torch_version}_{python}_{sysconfig.get_platform()}'
    return base / 'mmprune3d' / 'wheels' / name


def locked(name: str) -> str:
    """The version of a package in the lock."""
    return re.search(rf'^{re.escape(name)}==(\S+)', LOCK.read_text(), re.MULTILINE).group(1)


def fingerprint() -> str:
    """Changes whenever the set-up has to be made again."""
    parts = (LOCK.read_bytes(), Path(__file__).read_bytes(), sys.version.encode(), str(ROOT).encode())
    return hashlib.sha256(b'\0'.join(parts)).hexdigest()


def read_done() -> dict:
    """The steps that have been finished, for the fingerprint they were made with."""
    try:
        return json.loads(DONE.read_text())
    except (OSError, ValueError):
        return {}


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is either old or new, never half."""
    temporary = path.with_name(path.name + '.part')
    temporary.write_text(text)
    temporary.replace(path)


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def run(command: Iterable[str | Path], progress: Callable[[], str] = str, **environment: str) -> None:
    """Runs a command with its output in the log and a sign of life on the terminal.

    Args:
        command: The command line.
        progress: Gives a few words on how far it is.
        **environment: Variables to set in addition.

    Raises:
        SetupError: If it fails; with the end of the log and what to do.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'PIP_USER', 'PIP_TARGET')}
    quiet = {'PIP_NO_INPUT': '1', 'PIP_DISABLE_PIP_VERSION_CHECK': '1', 'PYTHONUNBUFFERED': '1'}
    start, pause = time.monotonic(), 10.0 if sys.stdout.isatty() else 60.0
    with LOG.open('ab') as log:
        offset, shown = log.tell(), start
        log.write(f'\n$ {" ".join(map(str, command))}\n'.encode())
        log.flush()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=inherited | quiet | environment,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - shown > pause:
                    shown = time.monotonic()
                    print(f'      ... {clock(shown - start)} {progress()}'.rstrip(), flush=True)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if process.returncode:
        raise SetupError(explain_failure(LOG.read_bytes()[offset:].decode(errors='replace')))


def explain_failure(output: str) -> str:
    """The end of the output of a failed command, and what to do about it."""
    tail = '\n'.join(line for line in output.splitlines() if not line.startswith('WARNING'))[-2000:]
    advice = next((hint for pattern, hint in HINTS if re.search(pattern, output)), 'Run `make env` again, it goes on.')
    return f'{tail}\n\n(everything: {LOG})\n-> {advice}'


def pip(*arguments: str | Path, **environment: str) -> None:
    """Runs the pip of the new environment."""
    run([PYTHON, '-m', 'pip', *arguments], **environment)


def make_venv() -> None:
    """An empty environment; an existing one of another Python is made again."""
    config = VENV / 'pyvenv.cfg'
    kept = config.is_file() and PYTHON.exists() and re.search(r'^version\s*=\s*3\.11\.', config.read_text(), re.M)
    log = LOG.read_bytes() if LOG.exists() else b''
    if not kept:
        shutil.rmtree(VENV, ignore_errors=True)
        VENV.mkdir()
        LOG.write_bytes(log)
        run([sys.executable, '-m', 'venv', VENV])


def install_torch() -> None:
    """torch and what is needed to build mmcv against it."""
    pins = [line for line in LOCK.read_text().splitlines() if line.split('==')[0] in FOUNDATION]
    index = os.environ.get('TORCH_INDEX')
    if index:
        pip('install', '--no-deps', '--index-url', index, f'torch=={locked("torch")}')
    pip('install', '--no-deps', *pins)
    run([PYTHON, '-c', 'import torch; print(torch.__version__)'])


def install_locked() -> None:
    """Every package of the lock, and nothing else."""
    pip('install', '--no-deps', '-r', LOCK)


def build_jobs() -> int:
    """How many compilers run at once: one per core, as far as memory reaches (1.5 GB each)."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return max(1, min(len(os.sched_getaffinity(0)), int(memory / 1.5e9)))


def built_so_far() -> str:
    """How many files of mmcv have been compiled, from the log of its build."""
    with LOG.open('rb') as log:
        log.seek(max(0, LOG.stat().st_size - 100_000))
        counts = re.findall(rb'^\s*\[(\d+)/(\d+)\]', log.read(), re.MULTILINE)
    return f'{counts[-1][0].decode()} of {counts[-1][1].decode()} files' if counts else ''


def build_mmcv(folder: Path) -> None:
    """Compiles mmcv with its C++ ops and puts the wheel into the cache `folder`.

    The unpacked sources stay in the environment until the wheel is done, so that an interrupted build goes on.
    """
    work = VENV / 'build'
    source = work / f'mmcv-{MMCV}'
    options = {'MMCV_WITH_OPS': '1', 'FORCE_CUDA': '0', 'MAX_JOBS': os.environ.get('JOBS') or str(build_jobs())}
    if not (source / '.unpacked').is_file():
        shutil.rmtree(work, ignore_errors=True)
        flags = ('--no-deps', '--no-build-isolation', '--no-binary', 'mmcv')
        pip('download', *flags, '-d', work, f'mmcv=={MMCV}', **options)
        with tarfile.open(next(work.glob('mmcv-*.tar.gz'))) as archive:
            archive.extractall(work, filter='data')
        (source / '.unpacked').touch()
    command = [PYTHON, '-m', 'pip', 'wheel', '-v', '--no-build-isolation', '--no-deps', '-w', work / 'wheel', source]
    run(command, built_so_far, PATH=f'{VENV / "bin"}{os.pathsep}{os.environ["PATH"]}', **options)
    wheel = next((work / 'wheel').glob('mmcv-*.whl'))
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f'{wheel.name}.{os.getpid()}.part'
    shutil.copyfile(wheel, temporary)
    temporary.replace(folder / wheel.name)
    shutil.rmtree(work)


def install_mmcv() -> None:
    """mmcv from the cache, or built first (about 12 minutes on two cores)."""
    asked = subprocess.run(
        [PYTHON, '-c', 'from importlib.metadata import version; print(version("torch"))'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder = wheel_folder(asked.stdout.strip())
    if not list(folder.glob('mmcv-*.whl')):
        print('      no built wheel in the cache, compiling (about 12 minutes on two cores)', flush=True)
        build_mmcv(folder)
    pip('install', '--no-deps', '--no-index', next(folder.glob('mmcv-*.whl')))


def install_plugin() -> None:
    """mmprune3d itself, editable."""
    pip('install', '--no-deps', '--no-build-isolation', '--no-index', '-e', ROOT)


def check_imports() -> None:
    """Everything that was installed can be imported."""
    imports = 'import mmcv.ops, mmdet3d.apis, nuscenes, spconv.pytorch, embreex, mmprune3d'
    run([PYTHON, '-c', f'{imports}; mmprune3d.register()'])


STEPS: tuple[tuple[str, Callable[[], None]], ...] = (
    ('virtual environment .venv', make_venv),
    ('torch', install_torch),
    ('locked packages', install_locked),
    ('mmcv with its C++ ops', install_mmcv),
    ('mmprune3d, editable', install_plugin),
    ('imports', check_imports),
)


def main() -> int:
    """Runs the steps that are not done yet.

    Returns:
        The exit status: 0 if the environment is ready.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    done = read_done()
    if done.get('fingerprint') != fingerprint() or not PYTHON.exists():
        done = {'fingerprint': fingerprint(), 'steps': []}
    if len(done['steps']) == len(STEPS):
        return 0
    pattern = wheel_folder(f'{locked("torch")}*')
    lacks = missing_tools(wheel_cached=any(pattern.parent.glob(f'{pattern.name}/mmcv-*.whl')))
    if lacks:
        print('\n'.join(['make env cannot start:', *(f'  * {sentence}' for sentence in lacks)]), file=sys.stderr)
        return 1
    start = time.monotonic()
    print(f"Setting up {VENV} (pip's output: {LOG})", flush=True)
    for number, (name, step) in enumerate(STEPS, 1):
        if name in done['steps']:
            continue
        print(f'[{number}/{len(STEPS)}] {name} ...', flush=True)
        begun = time.monotonic()
        try:
            step()
        except SetupError as error:
            print(f'\n{error}\n[{number}/{len(STEPS)}] {name}: failed', file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print('\nInterrupted. `make env` goes on from here.', file=sys.stderr)
            return 130
        done['steps'].append(name)
        write_atomically(DONE, json.dumps(done))
        print(f'[{number}/{len(STEPS)}] {name}: done in {clock(time.monotonic() - begun)}', flush=True)
    print(f'Ready after {clock(time.monotonic() - start)}. Activate it with: source .venv/bin/activate', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
