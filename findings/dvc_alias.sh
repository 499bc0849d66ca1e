#!/usr/bin/env bash
# Question: what does `dvc exp run -S a.beta=0.1` do when params.yaml says `a: &x {beta: 0.05}` and `b: *x`?
# One would think: a.beta becomes 0.1, alone or for both names.
# What happens: the command succeeds, and the stage runs with the old 0.05. Both names share one object; the new
# values are written section by section, so the last section (b, still 0.05) undoes the first. `-S b.beta=0.2`
# changes both. With a merge key (`b: {<<: *x}`) each section has its own values and `-S` does what it says.
# Versions: dvc 3.67.1, ruamel.yaml 0.19.1.
# Why it matters: a sweep over a.beta trains the same model again and again and reports no error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet dvc==3.67.1 ruamel.yaml==0.19.1
export HOME=$folder DVC_NO_ANALYTICS=true DVC_SITE_CACHE_DIR=$folder/site PATH=$folder/env/bin:$PATH
git config --global user.name reader
git config --global user.email reader@example.org
pip list 2>/dev/null | grep -E '^(dvc|ruamel.yaml) '
mkdir project
cd project
git init --quiet
dvc init --quiet
cat > dvc.yaml <<'YAML'
stages:
  train:
    cmd: cp params.yaml seen.yaml && echo "a.beta=${a.beta} b.beta=${b.beta}" > seen.txt
    params: [a, b]
    outs:
      - seen.txt: {cache: false}
YAML
status=0
try() { # the second line of params.yaml, the override, what the stage is expected to read
    printf 'a: &x {beta: 0.05}\nb: %s\n' "$1" > params.yaml
    git add --all
    git commit --quiet --allow-empty --message params
    dvc exp run --quiet --set-param "$2" > log 2>&1 || { cat log; echo "CHANGED: dvc refuses b: $1 with -S $2"; exit 1; }
    echo "b: $1    -S $2    exit 0, the stage read $(cat seen.txt)"
    if [ "$(cat seen.txt)" != "$3" ]; then
        echo "CHANGED: expected the stage to read $3"
        status=1
    fi
}
try '*x' a.beta=0.1 'a.beta=0.05 b.beta=0.05'
try '*x' b.beta=0.2 'a.beta=0.2 b.beta=0.2'
try '{<<: *x}' a.beta=0.1 'a.beta=0.1 b.beta=0.05'
exit $status
