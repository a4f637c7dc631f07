"""Generates a data set in the nuScenes format, scene by scene, in a configurable number of processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .config import GeneratorConfig
from .recording import SceneJob, record_scene, rig_records
from .rig import NUSCENES_SIZE
from .vocabulary import TABLE_NAMES, VERSION, Tables, shared_tables


@dataclass(frozen=True)
class GenerationReport:
    """Statistics of a generated data set: number of samples, recording time in seconds, annotations per category."""

    samples: int
    seconds: float
    annotations: dict[str, int]

    @property
    def samples_per_second(self) -> float:
        """Keyframes per second over all processes, without the time for info files."""
        return self.samples / self.seconds


def generate(config: GeneratorConfig, progress: bool = True) -> GenerationReport:
    """Generates a data set; `config.out` appears only when everything is complete.

    Args:
        config: Options of the data set.
        progress: Whether to show a progress bar on stderr.

    Returns:
        Statistics of the data set.

    Raises:
        ValueError: If the configuration is not valid.
        FileExistsError: If the folder exists and `overwrite` is False.
    """
    config.check()
    out, begin = Path(config.out).resolve(), time.perf_counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    with _staging_folder(out) as staging:
        tables = _record_all(config, staging, progress)
        seconds = time.perf_counter() - begin
        _write_tables(tables, staging / VERSION)
        if config.infos:
            from .infos import create_infos

            create_infos(staging, camera_boxes=tuple(config.image_size) == NUSCENES_SIZE)
        _put(staging, out)
    names = {record['token']: record['name'] for record in tables['category']}
    categories = {record['token']: names[record['category_token']] for record in tables['instance']}
    counts = Counter(categories[record['instance_token']] for record in tables['sample_annotation'])
    return GenerationReport(len(tables['sample']), seconds, dict(counts.most_common()))


@contextmanager
def _staging_folder(out: Path) -> Iterator[Path]:
    """A hidden folder next to `out`, removed at the end unless it is renamed; only a killed process leaves it."""
    for leftover in sorted(out.parent.glob(f'.{out.name}.partial-*')):
        warnings.warn(f'{leftover} is of a generation that was killed (then remove it) or still runs', stacklevel=3)
    staging = Path(tempfile.mkdtemp(prefix=f'.{out.name}.partial-', dir=out.parent))
    staging.chmod(0o755)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put(staging: Path, out: Path) -> None:
    """Renames a complete folder to its final name; an existing folder is removed afterwards, never partly replaced."""
    old = staging.with_name(staging.name.replace('.partial-', '.old-'))
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _record_all(config: GeneratorConfig, root: Path, progress: bool) -> Tables:
    """Records all scenes and joins their records in the order of the jobs."""
    from mmprune3d.screen import bar

    jobs, done = config.jobs(), {}
    with bar(total=len(jobs), desc='scenes', unit='scene', disable=not progress) as shown:
        for index, tables in _run(config, jobs, root):
            done[index] = tables
            shown.update()
    sensors = rig_records(config.image_size, config.sensors)
    joined: Tables = {name: [] for name in TABLE_NAMES} | shared_tables(sensors)
    for index in range(len(jobs)):
        for name, records in done[index].items():
            joined[name] += records
    return joined


def _run(config: GeneratorConfig, jobs: list[SceneJob], root: Path) -> Iterator[tuple[int, Tables]]:
    if config.workers == 1:
        for index, job in enumerate(jobs):
            yield index, record_scene(job, root)
        return
    context = multiprocessing.get_context(config.start_method)
    with (
        _one_thread_per_process(),
        ProcessPoolExecutor(min(config.workers, len(jobs)), context, _settle_worker) as pool,
    ):
        with _ignoring_ctrl_c():
            futures = {pool.submit(record_scene, job, root): index for index, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """Child processes that start in this context ignore Ctrl-C; the parent stops them, so they print no tracebacks."""
    if threading.current_thread() is not threading.main_thread():  # signal handlers can be set in the main thread only
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _one_thread_per_process() -> Iterator[None]:
    """Child processes that start in this context use one thread each; libraries read the setting when they load."""
    names = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, '1'))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _settle_worker() -> None:
    import cv2

    cv2.setNumThreads(1)


def _write_tables(tables: Tables, folder: Path) -> None:
    folder.mkdir()
    for name in TABLE_NAMES:
        (folder / f'{name}.json').write_text(json.dumps(tables[name], indent=0))
