#!/bin/sh
# What the tests of the Ansible collection need: ansible-core, and what builds and installs a wheel
# without a network, in .venv-ansible. Idempotent; says nothing when nothing is to do.
set -eu
cd "$(dirname "$0")/.."

stamp=.venv-ansible/.installed-from
wanted=$(cat scripts/setup-ansible.sh | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    rm -rf .venv-ansible
    python3 -m venv .venv-ansible
    pip=".venv-ansible/bin/python -m pip --quiet --disable-pip-version-check"
    $pip install 'ansible-core>=2.15' 'setuptools>=68' wheel
    $pip download --no-deps --dest .venv-ansible/wheels 'tenacity>=8.2' 'tomli>=2'
    printf '%s\n' "$wanted" >"$stamp"
fi
