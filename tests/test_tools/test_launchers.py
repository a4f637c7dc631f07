"""The shell scripts that start several processes, with the arguments that users of mmdet3d know."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
SCRIPTS = {
    'dist_train': ['a b.py', '3', '--amp', '--cfg-options', 'x=[1, 2]'],
    'dist_test': ['a b.py', 'c.pth', '3', '--cfg-options', 'x=[1, 2]'],
    'slurm_train': ['gpu', 'my job', 'a b.py', 'work dir', '--resume'],
    'slurm_test': ['gpu', 'my job', 'a b.py', 'c.pth', '--cfg-options', 'x=[1, 2]'],
}
LAUNCH = ['-m', 'torch.distributed.run']


@pytest.fixture
def start(tmp_path: Path):
    """Runs a script in which ``python`` and ``srun`` print their arguments, one a line."""
    for name in ('python', 'srun'):
        program = tmp_path / name
        program.write_text(f'#!{sys.executable}\nimport sys\nprint(*sys.argv[1:], sep="\\n")\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'

    def run(name: str, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {'PATH': path, **settings}
        return subprocess.run([TOOLS / f'{name}.sh', *words], capture_output=True, text=True, env=environment)

    return run


@pytest.mark.parametrize('name', SCRIPTS)
def test_bash_can_read_it_and_it_can_be_executed(name: str):
    assert os.access(TOOLS / f'{name}.sh', os.X_OK)
    assert subprocess.run(['bash', '-n', TOOLS / f'{name}.sh'], capture_output=True).returncode == 0


@pytest.mark.parametrize('name', SCRIPTS)
def test_without_its_arguments_it_says_what_they_are(name: str, start):
    done = start(name, *SCRIPTS[name][:1])
    assert (done.returncode, done.stdout) == (2, '')
    assert f'tools/{name}.sh {"CONFIG" if name.startswith("dist") else "PARTITION JOB_NAME"}' in done.stderr
    assert 'set -euo' not in done.stderr


@pytest.mark.parametrize('name', ['dist_train', 'dist_test'])
def test_processes_are_started_by_torch(name: str, start):
    words = start(name, *SCRIPTS[name]).stdout.splitlines()
    files = SCRIPTS[name][: 1 if name == 'dist_train' else 2]
    more = SCRIPTS[name][len(files) + 1 :]
    tool = str(TOOLS / f'{name.removeprefix("dist_")}.py')
    assert words[:2] == LAUNCH and words[words.index(tool) :] == [tool, *files, '--launcher', 'pytorch', *more]
    options = words[2 : words.index(tool)]
    assert options == [
        '--nnodes=1', '--node_rank=0', '--master_addr=127.0.0.1', '--master_port=29500', '--nproc_per_node=3',
    ]  # fmt: skip
    given = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='4')
    options = start(name, *SCRIPTS[name], **given).stdout.splitlines()[2:7]
    assert options == [
        '--nnodes=2', '--node_rank=1', '--master_addr=10.0.0.1', '--master_port=4', '--nproc_per_node=3',
    ]  # fmt: skip


@pytest.mark.parametrize('name', ['slurm_train', 'slurm_test'])
def test_tasks_are_started_by_slurm(name: str, start):
    words = start(name, *SCRIPTS[name]).stdout.splitlines()
    tool, (_, _, config, other, *more) = str(TOOLS / f'{name.removeprefix("slurm_")}.py'), SCRIPTS[name]
    files = [config, f'--work-dir={other}'] if name == 'slurm_train' else [config, other]
    assert words == [
        '-p', 'gpu', '--job-name=my job', '--gres=gpu:8', '--ntasks=8', '--ntasks-per-node=8', '--cpus-per-task=5',
        '--kill-on-bad-exit=1', 'python', '-u', tool, *files, '--launcher=slurm', *more,
    ]  # fmt: skip
    given = dict(GPUS='4', CPUS_PER_TASK='2', SRUN_ARGS='--quotatype=auto --time=1')
    words = start(name, *SCRIPTS[name], **given).stdout.splitlines()
    assert words[3:10] == [
        '--gres=gpu:4', '--ntasks=4', '--ntasks-per-node=4', '--cpus-per-task=2', '--kill-on-bad-exit=1',
        '--quotatype=auto', '--time=1',
    ]  # fmt: skip
