#!/usr/bin/env bash
# mmengine 0.10.7 (mmdet 3.3.0, numpy 1.26.4): a config whose base lies in a package, as in `mmdet::...`, cannot be read
# beside setuptools 84.0.0; it can beside 79.0.1.
#
# mmengine looks for the package with pkg_resources, which newer setuptools no longer bring, and does not name setuptools
# among its requirements. The message names neither setuptools nor the config. (A ModuleNotFoundError is raised.)
#
# Seen, and expected below:
#     setuptools 79.0.1: 9 settings
#     setuptools 84.0.0: No module named 'pkg_resources'
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check mmengine==0.10.7 numpy==1.26.4
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check --no-deps mmdet==3.3.0
cd "$tmp"
echo "_base_ = 'mmdet::_base_/default_runtime.py'" > config.py
cat > read.py <<'EOF'
from mmengine.config import Config

try:
    print(len(Config.fromfile('config.py')), 'settings')
except ModuleNotFoundError as error:
    print(error)
EOF
for setuptools in 79.0.1 84.0.0; do
    "$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check "setuptools==$setuptools"
    echo "setuptools $setuptools: $("$tmp/venv/bin/python" read.py)" | tee -a seen
done
diff seen - <<'EOF'
setuptools 79.0.1: 9 settings
setuptools 84.0.0: No module named 'pkg_resources'
EOF
