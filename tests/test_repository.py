"""Files that only other machines read: workflows, issue forms, hooks before a commit, Dockerfiles, Read the Docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / '.github'
WORKFLOWS = sorted((GITHUB / 'workflows').glob('*.yml'))
YAML = [
    *sorted(GITHUB.rglob('*.yml')),
    ROOT / '.pre-commit-config.yaml',
    ROOT / '.readthedocs.yaml',
    ROOT / 'CITATION.cff',
]


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def lock() -> dict[str, str]:
    lines = (ROOT / 'requirements' / 'lock-cpu.txt').read_text().splitlines()
    return dict(line.split('==') for line in lines if line and not line.startswith('#'))


def make_targets() -> set[str]:
    return set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))


@pytest.mark.parametrize('path', YAML, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_is_a_mapping(path):
    assert isinstance(read(path), dict)


def steps(path: Path) -> list[dict]:
    content = read(path)
    jobs = content['jobs'].values() if 'jobs' in content else [content['runs']]
    return [step for job in jobs for step in job['steps']]


class TestWorkflows:
    def test_the_four_are_there(self):
        assert {path.stem for path in WORKFLOWS} == {'lint', 'tests', 'docs', 'wheel'}

    @pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
    def test_they_may_read_the_code_and_nothing_else(self, path):
        content = read(path)
        assert content['permissions'] == {'contents': 'read'}
        assert all('permissions' not in job for job in content['jobs'].values())
        assert all(job['timeout-minutes'] <= 90 for job in content['jobs'].values())
        # YAML 1.1 reads `on` as true; pull_request_target would run foreign code with our rights
        assert set(content[True]) == {'push', 'pull_request'}

    @pytest.mark.parametrize(
        'path', [*WORKFLOWS, *GITHUB.glob('actions/*/action.yml')], ids=lambda path: path.parent.name
    )
    def test_actions_have_a_version_and_commands_exist(self, path):
        for step in steps(path):
            if 'uses' in step and step['uses'].startswith('./'):
                assert (ROOT / step['uses'] / 'action.yml').is_file()
            elif 'uses' in step:
                assert re.fullmatch(r'actions/[a-z-]+@v\d+', step['uses']), step['uses']
            for target in re.findall(r'\bmake ([a-z]+)', step.get('run', '')):
                assert target in make_targets(), target

    def test_every_gate_is_run(self):
        commands = '\n'.join(step.get('run', '') for path in WORKFLOWS for step in steps(path))
        for command in ('make lint', 'make test', 'make docs', 'ruff check', 'mmprune3d doctor', 'mmprune3d --help'):
            assert command in commands


class TestForms:
    def test_a_bug_report_needs_the_output_of_doctor(self):
        fields = {field.get('id'): field for field in read(GITHUB / 'ISSUE_TEMPLATE' / 'bug.yml')['body']}
        doctor = fields['doctor']
        assert 'mmprune3d doctor' in doctor['attributes']['label'] and doctor['validations']['required']
        assert 'python tools/doctor.py' in doctor['attributes']['description'] and (ROOT / 'tools/doctor.py').is_file()

    @pytest.mark.parametrize('name', ['bug', 'feature'])
    def test_forms_have_what_github_wants(self, name):
        form = read(GITHUB / 'ISSUE_TEMPLATE' / f'{name}.yml')
        assert form['name'] and form['description'] and form['body']
        for field in form['body']:
            assert field['type'] in ('markdown', 'textarea', 'input')
            assert 'value' in field['attributes'] if field['type'] == 'markdown' else field['attributes']['label']
        ids = [field['id'] for field in form['body'] if field['type'] != 'markdown']
        assert len(ids) == len(set(ids))


class TestPreCommit:
    @pytest.fixture(scope='class')
    def repos(self) -> dict[str, dict]:
        return {repo['repo']: repo for repo in read(ROOT / '.pre-commit-config.yaml')['repos']}

    def test_ruff_is_that_of_the_lock(self, repos):
        assert repos['https://github.com/astral-sh/ruff-pre-commit']['rev'] == f'v{lock()["ruff"]}'

    def test_revisions_are_tags(self, repos):
        for address, repo in repos.items():
            assert address == 'local' or re.fullmatch(r'v\d+\.\d+\.\d+', repo['rev']), address

    def test_local_hooks_bring_locked_packages_or_run_on_demand(self, repos):
        for hook in repos['local']['hooks']:
            if hook['language'] == 'system':
                assert hook['stages'] == ['manual'], hook['id']
            else:
                assert hook['language'] == 'python' and hook['additional_dependencies']
            for pin in hook.get('additional_dependencies', []):
                name, version = pin.split('==')
                assert lock()[name] == version, pin

    def test_nothing_needs_the_environment_of_make_env(self):
        assert '.venv' not in (ROOT / '.pre-commit-config.yaml').read_text()


class TestDocker:
    def test_the_cpu_image_is_made_by_make_env(self):
        text = (ROOT / 'docker' / 'Dockerfile.cpu').read_text()
        assert 'make env' in text and set(re.findall(r'make ([a-z]+)', text)) <= make_targets()

    def test_the_cuda_image_has_supported_versions_and_says_that_nobody_built_it(self):
        from mmprune3d.compat import SUPPORTED

        text = (ROOT / 'docker' / 'Dockerfile.cuda').read_text()
        assert 'NOT BUILT' in text and 'pytorch:2.8.0-cuda12.9' in text
        found = {'torch': '2.8.0', 'mmcv': re.search(r' mmcv==(\S+)', text).group(1)}
        found |= {name: lock()[name] for name in ('mmengine', 'mmdet', 'mmdet3d')}
        assert [entry.problem(found[entry.name]) for entry in SUPPORTED] == [None] * len(SUPPORTED)

    def test_what_is_left_out_of_the_lock_has_a_substitute(self):
        text = (ROOT / 'docker' / 'Dockerfile.cuda').read_text()
        pattern = re.search(r"grep -vE '([^']+)'", text).group(1)
        lines = (ROOT / 'requirements' / 'lock-cpu.txt').read_text().splitlines()
        left_out = {line.split('==')[0] for line in lines if re.search(pattern, line) and not line.startswith('#')}
        assert left_out == {'torch', 'spconv', 'cumm'}
        assert f'spconv-cu126=={lock()["spconv"]} cumm-cu126=={lock()["cumm"]}' in text

    def test_images_get_no_caches_and_no_results(self):
        ignored = (ROOT / '.dockerignore').read_text().split()
        assert {'.git', '.venv', 'work_dirs', 'data', '*.egg-info', 'mmprune3d/.mim'} <= set(ignored)


class TestUpgrading:
    @pytest.fixture(scope='class')
    def rows(self) -> list[tuple[str, str]]:
        lines = (ROOT / 'UPGRADING.md').read_text().splitlines()
        cells = [line.strip('| ').split(' | ') for line in lines if line.startswith('| `')]
        return [(before, now) for before, now in cells]

    def test_modules_and_scripts_that_it_sends_people_to_exist(self, rows):
        for _, now in rows:
            for name in re.findall(r'`((?:mmprune3d|experiments)\.[\w.]+)`', now):
                path = ROOT / name.replace('.', '/')
                assert path.with_suffix('.py').is_file() or path.is_dir(), name
            for name in re.findall(r'`python -m ([\w.]+)', now):
                assert (ROOT / name.replace('.', '/') / '__main__.py').is_file(), name
            for name in re.findall(r'`((?:tools|scripts)/[\w/]+\.py)', now):
                assert (ROOT / name).is_file(), name

    def test_what_it_calls_gone_is_gone(self, rows):
        for before, now in rows:
            if 'stay' in now:
                continue
            for name in re.findall(r'`(tools/[\w/]+\.py)', before):
                assert not (ROOT / name).exists(), name
        assert not list((ROOT / 'mmprune3d' / 'analysis').glob('*.py'))

    def test_every_script_that_stays_is_in_tools(self, rows):
        text = (ROOT / 'UPGRADING.md').read_text()
        for name in ('train', 'test', 'upgrade', 'doctor'):
            assert f'`tools/{name}.py`' in text and (ROOT / 'tools' / f'{name}.py').is_file()


def test_read_the_docs_takes_the_locked_torch():
    content = read(ROOT / '.readthedocs.yaml')
    commands = '\n'.join(content['build']['jobs']['install'])
    assert f'torch=={lock()["torch"]}' in commands and '-r requirements/lock-cpu.txt' in commands
    assert (ROOT / content['sphinx']['configuration']).is_file() and content['sphinx']['fail_on_warning']
