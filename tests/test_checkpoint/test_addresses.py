from __future__ import annotations

import argparse
import functools
import http.server
import pickle
import threading
from pathlib import Path

import mmengine.runner.checkpoint
import pytest
import torch
from mmengine.fileio import BaseStorageBackend
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_from_http
from torch import nn

from mmprune3d.checkpoint import addresses
from mmprune3d.checkpoint.addresses import address_of, kept_file, local_file
from mmprune3d.checkpoint.kinds import UnreadableCheckpointError
from mmprune3d.checkpoint.read import read_checkpoint


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, the address of a server for it on this machine, and what it was asked for; torch's cache is empty."""
    folder = tmp_path / 'served'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(Quiet, 'asked', [])
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f'http://127.0.0.1:{server.server_port}', Quiet.asked
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(3, 3)


class Ran:
    """A class that no checkpoint may name."""

    def __reduce__(self):
        return _run, ()


RUNS: list[int] = []


def _run():
    RUNS.append(1)


class TestWeb:
    def test_an_address_is_downloaded_once(self, served, model):
        folder, host, asked = served
        torch.save({'state_dict': model.state_dict()}, folder / 'w.pth')
        for _ in range(2):
            found = read_checkpoint(f'{host}/w.pth')['state_dict']
            assert torch.equal(found['weight'], model.weight)
        assert asked == ['/w.pth']

    def test_a_path_made_of_an_address_is_still_one(self, served, model):
        folder, host, _ = served
        torch.save(model.state_dict(), folder / 'w.pth')
        assert 'http:/1' in str(Path(f'{host}/w.pth'))
        assert set(read_checkpoint(Path(f'{host}/w.pth'))['state_dict']) == {'weight', 'bias'}

    def test_files_of_the_same_name_are_not_mistaken_for_each_other(self, served, model):
        folder, host, _ = served
        for number in (1, 2):
            (folder / str(number)).mkdir()
            torch.save({'a': torch.tensor(number)}, folder / str(number) / 'epoch_24.pth')
        found = [read_checkpoint(f'{host}/{number}/epoch_24.pth')['state_dict']['a'].item() for number in (1, 2)]
        assert found == [1, 2]

    def test_mmengine_may_say_where_downloads_are_kept(self, served, model, tmp_path):
        folder, host, _ = served
        torch.save(model.state_dict(), folder / 'w.pth')
        load_from_http(f'{host}/w.pth', 'cpu', model_dir=str(tmp_path / 'mine'))
        assert len(list((tmp_path / 'mine').iterdir())) == 1

    def test_a_program_is_not_run(self, served):
        folder, host, _ = served
        torch.save({'state_dict': {'a': torch.ones(1)}, 'x': Ran()}, folder / 'w.pth')
        with pytest.raises(UnreadableCheckpointError, match='a program, of which nothing was run'):
            read_checkpoint(f'{host}/w.pth')
        with pytest.raises(UnreadableCheckpointError, match='a program, of which nothing was run'):
            load_checkpoint(nn.Linear(3, 3), f'{host}/w.pth')
        assert RUNS == []

    def test_mmengine_loads_addresses_too(self, served, model):
        folder, host, _ = served
        torch.save({'model': model.state_dict(), 'args': argparse.Namespace(lr=1)}, folder / 'w.pth')
        other = nn.Linear(3, 3)
        load_checkpoint(other, f'{host}/w.pth', map_location='cpu')
        assert torch.equal(other.weight, model.weight)

    @pytest.mark.parametrize(
        ('content', 'words'),
        [(b'<html><h1>Please log in</h1>', r"a web page \('Please log in'\)"), (b'', 'it is empty')],
    )
    def test_what_is_no_checkpoint_is_not_kept(self, served, content, words, model):
        folder, host, _ = served
        (folder / 'w.pth').write_bytes(content)
        with pytest.raises(UnreadableCheckpointError, match=words) as error:
            read_checkpoint(f'{host}/w.pth')
        assert str(error.value).startswith(f'{host}/w.pth ({len(content)} bytes)')
        torch.save(model.state_dict(), folder / 'w.pth')
        assert read_checkpoint(f'{host}/w.pth')['state_dict']

    def test_a_download_that_was_cut_off_is_not_kept(self, served, model):
        folder, host, _ = served
        torch.save(model.state_dict(), folder / 'w.pth')
        whole = (folder / 'w.pth').read_bytes()
        (folder / 'w.pth').write_bytes(whole[:-100])
        with pytest.raises(UnreadableCheckpointError, match='its end is missing'):
            read_checkpoint(f'{host}/w.pth')
        assert not kept_file(f'{host}/w.pth').exists() and list(kept_file(f'{host}/w.pth').parent.iterdir()) == []

    def test_nothing_there(self, served):
        _, host, _ = served
        with pytest.raises(UnreadableCheckpointError, match=r'/none\.pth cannot be fetched: HTTP Error 404'):
            read_checkpoint(f'{host}/none.pth')


def test_nobody_answers(served, monkeypatch):
    def refused(*args, **kwargs):
        raise ConnectionRefusedError(111, 'Connection refused')

    monkeypatch.setattr(torch.hub, 'urlopen', refused)
    with pytest.raises(UnreadableCheckpointError, match=r'https://host/w\.pth cannot be fetched: .*Connection refused'):
        local_file('https://host/w.pth')


def test_names_with_a_hash_are_kept_under_them(monkeypatch, tmp_path):
    """So that what torch and mmengine downloaded before is found."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    folder = tmp_path / 'hub' / 'checkpoints'
    assert kept_file('https://host/a/petr_20220606-3f0d0b7c.pth') == folder / 'petr_20220606-3f0d0b7c.pth'
    assert kept_file('https://host/a/epoch_24.pth').name.startswith('epoch_24-')
    assert kept_file('https://host/a/epoch_24.pth') != kept_file('https://host/b/epoch_24.pth')


class TestOtherAddresses:
    def test_stores_go_through_the_backends_of_mmengine(self, served, model, monkeypatch):
        folder, _, _ = served
        torch.save(model.state_dict(), folder / 'w.pth')

        class Store(BaseStorageBackend):
            def get(self, filepath):
                assert filepath == 'cluster:s3://bucket/w.pth'
                return (folder / 'w.pth').read_bytes()

            def get_text(self, filepath):
                raise NotImplementedError

        monkeypatch.setattr(addresses, 'get_file_backend', lambda uri, backend_args: Store())
        assert set(read_checkpoint('cluster:s3://bucket/w.pth')['state_dict']) == {'weight', 'bias'}

    def test_a_store_without_its_package(self):
        with pytest.raises(UnreadableCheckpointError, match=r's3://bucket/w\.pth cannot be fetched: .*petrel_client'):
            local_file('s3://bucket/w.pth')

    def test_names_of_models(self, served, model, monkeypatch):
        folder, host, _ = served
        torch.save(model.state_dict(), folder / 'resnet.pth')
        models = {'detectron/resnet50_caffe': f'{host}/resnet.pth'}
        monkeypatch.setitem(addresses.NAMES, 'open-mmlab', lambda: models)
        for name in ('detectron/resnet50_caffe', 'resnet50_caffe'):  # the second is an old name of the first
            assert set(read_checkpoint(f'open-mmlab://{name}')['state_dict']) == {'weight', 'bias'}

    def test_an_unknown_name_lists_similar_ones(self, monkeypatch, tmp_path):
        monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
        with pytest.raises(UnreadableCheckpointError, match=r'has no model of this name; similar are .*resnet50_caffe'):
            local_file('open-mmlab://resnet50_cafe')

    def test_an_unknown_kind_lists_the_valid_ones(self):
        for read in (local_file, lambda address: load_checkpoint(nn.Linear(3, 3), address)):
            with pytest.raises(
                UnreadableCheckpointError, match=r'ftp://host/w.pth: .* not supported; valid .*https://'
            ):
                read('ftp://host/w.pth')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('w.pth', None),
        ('work_dirs/a/w.pth', None),
        ('/a/b/w.pth', None),
        ('C:/a/w.pth', None),
        ('file:///a/w.pth', None),
        ('http://host/w.pth', ('http', 'http://host/w.pth')),
        ('http:/host/w.pth', ('http', 'http://host/w.pth')),
        ('cluster:s3://b/w.pth', ('cluster:s3', 'cluster:s3://b/w.pth')),
        ('gs://b/w.pth', ('gs', 'gs://b/w.pth')),
    ],
)
def test_what_an_address_is(text, expected):
    assert address_of(text) == expected


def test_a_file_address_is_a_path():
    assert local_file('file:///a/w.pth') == Path('/a/w.pth')


def test_mmengine_alone_would_run_downloads(served, model, monkeypatch):
    """Why ``load_url`` is replaced: the day this fails, mmengine or torch became safe and the replacement can go."""
    from torch.hub import load_state_dict_from_url

    assert mmengine.runner.checkpoint.load_url is not load_state_dict_from_url
    folder, host, _ = served
    (folder / 'w.pth').write_bytes(b'')
    torch.save({'a': argparse.ArgumentError(None, 'harmless, but not on the list')}, folder / 'w.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(folder / 'w.pth', weights_only=True)
    assert 'a' in load_state_dict_from_url(f'{host}/w.pth', progress=False)
