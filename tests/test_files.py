"""Files are whole or absent: full disks, kills and folders that cannot be written."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmprune3d import files

# A limit on the size of files stands in for a disk that becomes full in the middle of a write.
LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
import torch
from mmengine.config import Config
from mmprune3d import files

folder = Path(sys.argv[1])
weights = {'first': torch.ones(100_000), 'more': [torch.ones(100) for _ in range(40)]}
picture = np.random.default_rng(0).integers(0, 255, (500, 500, 3), np.uint8)
writers = {
    'weights.pth': lambda path: files.save_checkpoint(weights, path),
    'figures.json': lambda path: files.write_json(path, list(range(100_000))),
    'picture.jpg': lambda path: files.write_image(path, picture),
    'config.py': lambda path: files.dump_config(Config(dict(numbers=['a' * 50] * 9_000)), path),
}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for name, write in writers.items():
    path = folder / name
    path.write_bytes(b'as it was')
    for limit in (0, 1_000, 401_000, 402_700, 425_000) if name == 'weights.pth' else (0, 1_000, 200_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(path)
        except OSError as error:
            assert error.filename == str(path), error
        else:
            raise AssertionError(f'{name} was written with {limit} bytes')
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert path.read_bytes() == b'as it was'
        assert set(folder.iterdir()) <= {folder / name for name in writers}
"""


def test_full_disk_is_an_oserror_that_names_the_file_and_leaves_the_old_one(tmp_path: Path):
    done = subprocess.run([sys.executable, '-c', LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', ['picture', 'picture.jpgg'])
def test_pictures_of_unknown_formats(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match='valid is'):
        files.write_image(tmp_path / name, np.zeros((4, 4, 3), np.uint8))


def test_device_that_is_full(tmp_path: Path):
    with pytest.raises(OSError, match='space') as caught, files.replacing(tmp_path / 'a.bin') as part:
        part.symlink_to('/dev/full')
        with part.open('wb') as file:
            file.write(b'1')
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / 'a.bin')
    assert not list(tmp_path.iterdir())


def test_interruption_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / 'deep' / 'result.json'
    files.write_json(path, {'mAP': 0.5})
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as part:
        part.write_text('{"mAP"')
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {'mAP': 0.5}
    assert list(path.parent.iterdir()) == [path]


def test_errors_about_other_files_keep_their_name(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught, files.replacing(tmp_path / 'a'):
        (tmp_path / 'other').read_text()
    assert caught.value.filename == str(tmp_path / 'other')


def test_leftover_of_a_killed_process_is_replaced(tmp_path: Path):
    (tmp_path / '.part.a.pth').write_bytes(b'half')
    files.save_checkpoint({'x': torch.ones(2)}, tmp_path / 'a.pth')
    assert torch.load(tmp_path / 'a.pth', weights_only=True)['x'].tolist() == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


def test_symbolic_links_stay(tmp_path: Path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'link.txt').symlink_to(tmp_path / 'elsewhere' / 'text.txt')
    files.write_text(tmp_path / 'link.txt', 'ä')
    assert (tmp_path / 'link.txt').is_symlink()
    assert (tmp_path / 'elsewhere' / 'text.txt').read_bytes() == 'ä'.encode()


def test_writable_folders_are_made_and_stay_empty(tmp_path: Path):
    assert files.writable(tmp_path / 'a' / 'b') == tmp_path / 'a' / 'b'
    assert not list((tmp_path / 'a' / 'b').iterdir())


@pytest.mark.parametrize('place', ['in the place of the folder', 'above', 'no folder of files'])
def test_folders_that_cannot_be_written_are_refused(tmp_path: Path, place: str):
    (tmp_path / 'file').touch()
    folders = {'in the place of the folder': tmp_path / 'file', 'above': tmp_path / 'file' / 'out'}
    folder = folders.get(place, Path('/proc/self/out'))
    with pytest.raises(OSError, match='results cannot be written there') as caught:
        files.writable(folder)
    assert caught.value.filename == str(folder)
    assert ('is a file, not a folder' in str(caught.value)) == folder.is_file()


HOLDING = """
import sys
from mmprune3d import files
with files.alone(sys.argv[1]):
    print('has it', flush=True)
    sys.stdin.readline()
"""


def test_a_folder_is_worked_in_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / 'out'
    command = [sys.executable, '-c', HOLDING, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == 'has it\n'
        with pytest.raises(BlockingIOError, match='another process works in this folder'), files.alone(folder):
            raise AssertionError('both have it')
        other.kill()  # the lock goes with the process
    with files.alone(folder):
        (folder / 'result').touch()
    assert sorted(path.name for path in folder.iterdir()) == ['.lock', 'result']


def test_a_folder_without_results_does_not_stay(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='refused'), files.alone(tmp_path / 'out'):
        raise ValueError('refused')
    assert not (tmp_path / 'out').exists()
