#!/usr/bin/env bash
# Question: does DVC run a stage again when a tracked parameter changes from `true` to `1`, or from 1 to 1.0?
# One would think: yes, the file and what the program reads from it are different.
# What happens: no. Values are compared as Python compares them, where True == 1 == 1.0; the stage is reported as
# up to date and its output keeps the old value. (From `true` to `"true"` is a change.)
# Versions: dvc 3.67.1.
# Why it matters: programs tell these values apart (a flag, an int that becomes a float), and the result on disk is
# the one of the old value although everything is reported as current.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet dvc==3.67.1
export HOME=$folder DVC_NO_ANALYTICS=true DVC_SITE_CACHE_DIR=$folder/site PATH=$folder/env/bin:$PATH
pip list 2>/dev/null | grep -E '^dvc '
mkdir project
cd project
dvc init --quiet --no-scm
cat > dvc.yaml <<'YAML'
stages:
  train:
    cmd: cp params.yaml output.yaml
    params: [shuffle, depth]
    outs: [output.yaml]
YAML
printf 'shuffle: true\ndepth: 1\n' > params.yaml
dvc repro --quiet
status=0
try() { # shuffle, depth, what is expected: old (not run again) or new
    printf 'shuffle: %s\ndepth: %s\n' "$1" "$2" > params.yaml
    dvc repro --quiet
    if cmp -s params.yaml output.yaml; then seen=new; else seen=old; fi
    echo "shuffle: $1, depth: $2 -> dvc repro leaves the $seen output: $(tr '\n' ' ' < output.yaml)"
    if [ "$seen" != "$3" ]; then
        echo "CHANGED: expected the $3 output"
        status=1
    fi
}
try 1 1 old
try true 1.0 old
try true true old
try '"true"' 1 new
exit $status
