from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import mmengine.runner.checkpoint
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from mmprune3d.checkpoint.kinds import UnreadableCheckpointError
from mmprune3d.checkpoint.mismatch import CheckpointMismatchError
from mmprune3d.checkpoint.read import load_url, load_weights, read_checkpoint
from mmprune3d.checkpoint.torch_files import read_file
from mmprune3d.compat import install_safe_reading


class Runs:
    """What a pickle can do: call a function. This one is harmless, but nobody knows that before it ran."""

    def __reduce__(self):
        return os.getcwd, ()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 64, 3))


@pytest.fixture
def weights(model):
    return model.state_dict()


def same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def write_safetensors(path, tensors, metadata=None):
    """The format, written from its description: 8 bytes of length, JSON, numbers."""
    kinds = {torch.float32: 'F32', torch.float16: 'F16', torch.int64: 'I64', torch.bfloat16: 'BF16', torch.bool: 'BOOL'}
    head, parts, at = {'__metadata__': metadata} if metadata else {}, [], 0
    for name, value in tensors.items():
        raw = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        head[name] = dict(dtype=kinds[value.dtype], shape=list(value.shape), data_offsets=[at, at + len(raw)])
        at += len(raw)
        parts.append(raw)
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + b''.join(parts))


class TestReads:
    @pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
    def test_both_formats_of_torch(self, weights, tmp_path, zipped):
        path = tmp_path / 'w.pth'
        data = {'state_dict': weights, 'meta': {'epoch': 3}, 'optimizer': {'state': {}}}
        torch.save(data, path, _use_new_zipfile_serialization=zipped)
        found = read_checkpoint(path)
        same(found['state_dict'], weights)
        assert found['meta'] == {'epoch': 3} and found['optimizer'] == {'state': {}}
        assert found['state_dict']._metadata == weights._metadata

    @pytest.mark.parametrize('name', ['model', 'model_state', 'network', 'ema_state_dict'])
    def test_weights_under_another_name(self, weights, tmp_path, name):
        torch.save({name: weights, 'epoch': 1}, tmp_path / 'w.pth')
        found = read_checkpoint(tmp_path / 'w.pth')
        same(found['state_dict'], weights)
        assert set(found) == {'epoch', 'meta', 'state_dict'}

    def test_official_files_keep_their_arguments_beside_the_model(self, weights, tmp_path):
        torch.save({'model': weights, 'args': argparse.Namespace(lr=0.1)}, tmp_path / 'w.pth')
        same(read_checkpoint(tmp_path / 'w.pth')['state_dict'], weights)

    def test_a_plain_state_dict_and_one_without_meta(self, weights, tmp_path):
        for number, data in enumerate((weights, {'state_dict': weights}, {'state_dict': weights, 'meta': None})):
            torch.save(data, tmp_path / f'{number}.pth')
            found = read_checkpoint(tmp_path / f'{number}.pth')
            same(found['state_dict'], weights)
            assert found['meta'] == {}

    def test_names_of_wrapped_models_with_their_versions(self, model, tmp_path):
        torch.save({'state_dict': nn.ModuleDict({'module': model}).state_dict()}, tmp_path / 'ddp.pth')
        found = read_checkpoint(tmp_path / 'ddp.pth')['state_dict']
        same(found, model.state_dict())
        assert found._metadata['1'] == {'version': 2}

    def test_weights_win_over_their_average_and_that_is_said(self, weights, tmp_path, monkeypatch):
        said = []
        monkeypatch.setattr('mmprune3d.checkpoint.read.print_log', lambda text, **_: said.append(text))
        average = {f'module.{name}': value + 1 for name, value in weights.items()}
        torch.save({'state_dict': weights, 'ema_state_dict': average}, tmp_path / 'ema.pth')
        same(read_checkpoint(tmp_path / 'ema.pth')['state_dict'], weights)
        assert said == [f"{tmp_path / 'ema.pth'}: its weights are those under 'state_dict'; not used: ema_state_dict"]

    def test_safetensors_without_the_package(self, weights, tmp_path):
        more = {
            **weights,
            'half': torch.rand(3).half(),
            'brain': torch.rand(2, 2).bfloat16(),
            'none': torch.zeros(0, 4),
        }
        more['flag'] = torch.tensor([True, False])
        write_safetensors(tmp_path / 'w.safetensors', more, {'format': 'pt'})
        same(read_checkpoint(tmp_path / 'w.safetensors')['state_dict'], more)

    def test_the_model_has_the_weights(self, model, weights, tmp_path):
        torch.save({'model': weights}, tmp_path / 'w.pth')
        other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 64, 3))
        load_weights(other, tmp_path / 'w.pth')
        same(other.state_dict(), model.state_dict())

    def test_weights_that_do_not_fit_are_refused_as_a_value_error_too(self, weights, tmp_path):
        torch.save({'model': weights}, tmp_path / 'w.pth')
        with pytest.raises(CheckpointMismatchError) as error:
            load_weights(nn.Linear(2, 2), tmp_path / 'w.pth')
        assert isinstance(error.value, ValueError)


def cut(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


def flip(path, at):
    whole = bytearray(path.read_bytes())
    whole[at(whole)] ^= 0xFF
    path.write_bytes(whole)


def legacy(data, path):
    torch.save(data, path, _use_new_zipfile_serialization=False)


def tar(path):
    with tarfile.open(path, 'w') as archive:
        archive.add(__file__, 'w.pth')


def zipped(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('w.pth', b'')


def truncated(w, path):
    torch.save(w, path)
    cut(path, 0.5)


def truncated_legacy(w, path):
    legacy(w, path)
    cut(path, 0.5)


def truncated_safetensors(w, path):
    write_safetensors(path, w)
    cut(path, 0.5)


def damaged(w, path):
    """One bit of a weight: torch.load (2.13) reads such a file without a word."""
    torch.save(w, path)
    flip(path, lambda whole: whole.index(w['2.weight'].numpy().tobytes()) + 100)


def folder(w, path):
    path.mkdir()
    (path / 'epoch_1.pth').write_bytes(b'')


def sharded(w, path):
    path.mkdir()
    (path / '__0_0.distcp').write_bytes(b'')


LFS = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234567\n'
FILES = {
    'truncated': (truncated, 'its end is missing'),
    'truncated legacy': (truncated_legacy, 'damaged or was cut off'),
    'truncated safetensors': (truncated_safetensors, 'was cut off'),
    'a damaged weight': (damaged, '1 of its parts'),
    'a whole model': (lambda w, p: torch.save(nn.Linear(2, 2), p), r'pickled object of the class torch\.nn\S*\.Linear'),
    'a whole model, legacy': (lambda w, p: legacy(nn.Linear(2, 2), p), r'class torch\.nn\S*\.Linear'),
    'a whole model, protocol 4': (lambda w, p: torch.save(nn.Linear(2, 2), p, pickle_protocol=4), r'class torch\.nn'),
    'protocol 4': (lambda w, p: torch.save(w, p, pickle_protocol=4), 'pickle protocol 4'),
    'a program': (lambda w, p: torch.save({'state_dict': w, 'x': Runs()}, p), r'contains posix\.getcwd'),
    'foreign objects': (lambda w, p: torch.save({'model': w, 'at': Path('a')}, p), r'contains pathlib'),
    'TorchScript': (lambda w, p: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(p)), 'TorchScript'),
    'a web page': (lambda w, p: p.write_text('<html><title>404 Not\n found</title>'), r"web page \('404 Not found'\)"),
    'an answer': (
        lambda w, p: p.write_text('<?xml version="1.0"?><Error>AccessDenied'),
        'answer of a server: .*Denied',
    ),
    'Git LFS': (lambda w, p: p.write_text(LFS), 'Git LFS pointer to a file of 1234567 bytes(?s:.)*git lfs pull'),
    'a config': (lambda w, p: p.write_text("_base_ = ['petr.py']"), 'a text: .*petr'),
    'JSON': (lambda w, p: p.write_text('{"error": "rate limit"}'), 'a text: .*rate limit'),
    'nothing': (lambda w, p: p.write_bytes(b''), 'it is empty'),
    'zeros': (lambda w, p: p.write_bytes(bytes(5000)), 'nothing but zeros'),
    'a folder': (folder, 'it is a folder(?s:.)*epoch_1.pth'),
    'a sharded folder': (sharded, 'in pieces(?s:.)*dcp_to_torch'),
    'a pickle': (lambda w, p: p.write_bytes(pickle.dumps({'a': 1})), 'Python pickle that torch.save did not write'),
    'gzip': (lambda w, p: p.write_bytes(gzip.compress(b'weights')), 'gzip archive(?s:.)*unpack'),
    'tar': (lambda w, p: tar(p), 'tar archive(?s:.)*unpack'),
    'zip': (lambda w, p: zipped(p), r'zip archive of other files \(w.pth\)'),
    'npy': (lambda w, p: p.write_bytes(b'\x93NUMPY\x01\x00'), 'a NumPy array'),
    'HDF5': (lambda w, p: p.write_bytes(b'\x89HDF\r\n\x1a\n'), 'HDF5'),
    'ONNX': (lambda w, p: p.write_bytes(b'\x08\x0a\x12\x07pytorch\x1a\x062.13.0'), 'ONNX model'),
    'noise': (
        lambda w, p: p.write_bytes(np.random.default_rng(0).bytes(999)),
        r'an unknown format \(its first bytes are',
    ),
    'a list': (lambda w, p: torch.save([1, 2], p), 'contains a list'),
    'a tensor': (lambda w, p: torch.save(torch.ones(2), p), 'contains a Tensor'),
    'an optimizer': (
        lambda w, p: torch.save({'optimizer': {'state': {}}, 'epoch': 1}, p),
        'no weights, but optimizer, epoch',
    ),
    'an empty dict': (lambda w, p: torch.save({}, p), 'no weights, but nothing'),
}


@pytest.mark.parametrize('case', FILES)
def test_what_is_no_checkpoint_is_one_message(weights, tmp_path, case):
    write, words = FILES[case]
    path = tmp_path / 'given.pth'
    write(weights, path)
    with pytest.raises(UnreadableCheckpointError, match=words) as error:
        read_checkpoint(path)
    text = str(error.value)
    size = 'a folder' if path.is_dir() else f'{path.stat().st_size} bytes'
    assert text.startswith(f'{path} ({size}) cannot be read as a checkpoint: ')
    assert 'weights_only' not in text and 'add_safe_globals' not in text and '\n  -> ' in text
    assert error.value.__suppress_context__ or error.value.__context__ is None or case.endswith('safetensors')


def test_arrays_of_numpy(tmp_path):
    np.savez(tmp_path / 'w.npz', a=np.ones(2), b=np.ones(3))
    with pytest.raises(UnreadableCheckpointError, match=r'NumPy arrays \(a.npy, b.npy'):
        read_checkpoint(tmp_path / 'w.npz')


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        read_checkpoint(tmp_path / 'none.pth')


def test_files_without_checksums_are_read(weights, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, tmp_path / 'w.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    same(read_checkpoint(tmp_path / 'w.pth')['state_dict'], weights)


def test_what_is_not_the_fault_of_the_file_is_not_blamed_on_it(weights, tmp_path):
    torch.save(weights, tmp_path / 'w.pth')

    def to_gpu(storage, location):
        raise RuntimeError('CUDA: no memory left')

    with pytest.raises(RuntimeError, match='CUDA: no memory left'):
        read_file(tmp_path / 'w.pth', to_gpu)


@pytest.mark.parametrize('kind', ['F4', None])
def test_safetensors_of_an_unknown_type(tmp_path, kind):
    head = json.dumps({'a': dict(dtype=kind, shape=[1], data_offsets=[0, 1])}).encode()
    (tmp_path / 'w.safetensors').write_bytes(struct.pack('<Q', len(head)) + head + b'\0')
    with pytest.raises(UnreadableCheckpointError, match=f'a in it has the type {kind!r}'):
        read_checkpoint(tmp_path / 'w.safetensors')


@pytest.mark.parametrize('head', [b'{"a": 1}', b'{"a": {"shape": [1]}}', b'{]', b'{"a": {"data_offsets": []}}'])
def test_safetensors_with_a_wrong_header(tmp_path, head):
    (tmp_path / 'w.safetensors').write_bytes(struct.pack('<Q', len(head)) + head + b'\0' * 8)
    with pytest.raises(UnreadableCheckpointError, match='header is damaged'):
        read_checkpoint(tmp_path / 'w.safetensors')


class TestMMEngine:
    """Importing mmprune3d makes the Runner, ``init_model`` and ``init_cfg`` read in the same way."""

    def test_its_message_is_ours(self, weights, tmp_path):
        torch.save(nn.Linear(2, 2), tmp_path / 'w.pth')
        with pytest.raises(UnreadableCheckpointError, match='pickled object'):
            load_checkpoint(nn.Linear(2, 2), str(tmp_path / 'w.pth'))

    def test_weights_under_another_name_are_loaded(self, model, weights, tmp_path):
        torch.save({'model': weights}, tmp_path / 'w.pth')
        other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 64, 3))
        load_checkpoint(other, str(tmp_path / 'w.pth'), map_location='cpu')
        same(other.state_dict(), model.state_dict())

    def test_safetensors_are_loaded(self, model, weights, tmp_path):
        write_safetensors(tmp_path / 'w.safetensors', weights)
        other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 64, 3))
        load_checkpoint(other, str(tmp_path / 'w.safetensors'), map_location='cpu')
        same(other.state_dict(), model.state_dict())

    def test_files_of_mmengine_come_back_as_they_are(self, weights, tmp_path):
        for number, data in enumerate((weights, {'state_dict': weights, 'meta': {'epoch': 1}}, {'embeddings': 1})):
            torch.save(data, tmp_path / f'{number}.pth')
            assert set(CheckpointLoader.load_checkpoint(str(tmp_path / f'{number}.pth'), 'cpu')) == set(data)


class TestOlderTorch:
    """Before 2.6, torch cannot be told which of mmengine's types are harmless; simulated by its version alone."""

    def test_training_state_is_refused_and_the_message_says_which_torch_reads_it(self, weights, tmp_path, monkeypatch):
        torch.save({'state_dict': weights, 'message_hub': Config({'a': 1})}, tmp_path / 'epoch_1.pth')
        monkeypatch.setattr(torch, '__version__', '2.3.1')
        with pytest.raises(UnreadableCheckpointError, match=r'torch 2\.3\.1 cannot read safely; 2\.6 and newer can'):
            read_checkpoint(tmp_path / 'epoch_1.pth')
        monkeypatch.setattr(torch, '__version__', '2.13.0')
        with pytest.raises(UnreadableCheckpointError, match='save the weights alone'):
            read_checkpoint(tmp_path / 'epoch_1.pth')

    def test_downloads_are_read_safely_and_mmengine_resumes_as_it_did(self, monkeypatch):
        registered = []
        monkeypatch.setattr(mmengine.runner.checkpoint, 'load_url', None)
        monkeypatch.setattr(CheckpointLoader, 'register_scheme', lambda *scheme, **_: registered.append(scheme[0]))
        monkeypatch.setattr(torch, '__version__', '2.3.1')
        install_safe_reading()
        assert mmengine.runner.checkpoint.load_url is load_url and registered == []
        monkeypatch.setattr(torch, '__version__', '2.6.0')
        install_safe_reading()
        assert registered == ['']
