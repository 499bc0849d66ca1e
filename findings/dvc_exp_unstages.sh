#!/usr/bin/env bash
# Question: does `dvc exp run` leave alone what is staged in git?
# One would think: yes; it runs the pipeline with another parameter, and commits nothing to the branch.
# What happens: afterwards nothing is staged any more, without a word. Where only a part of a file's changes was staged
# (`git add --patch`), the selection is gone; the file itself keeps all changes. With --temp everything stays staged.
# Versions: dvc 3.67.1, scmrepo 3.6.2.
# Why it matters: a `git commit` after the experiment commits nothing, or with -a more than was selected.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet dvc==3.67.1 scmrepo==3.6.2
export HOME=$folder DVC_NO_ANALYTICS=true DVC_SITE_CACHE_DIR=$folder/site PATH=$folder/env/bin:$PATH
git config --global user.name name && git config --global user.email name@example.org
pip list 2>/dev/null | grep -E '^(dvc|scmrepo) '
status=0
try() { # option of dvc exp run, what is expected to be staged afterwards
    rm -rf project && mkdir project && cd project
    git init --quiet && dvc init --quiet
    printf 'stages:\n  train:\n    cmd: cp params.yaml output.yaml\n    params: [depth]\n    outs: [output.yaml]\n' > dvc.yaml
    echo 'depth: 1' > params.yaml
    echo 'first line' > note.txt
    dvc repro --quiet && git add . && git commit --quiet --message first
    printf 'first line\nstaged line\n' > note.txt && git add note.txt && echo 'line for later' >> note.txt
    echo 'new' > new.txt && git add new.txt
    before=$(git diff --cached --name-only | tr '\n' ' ')
    dvc exp run ${1:+"$1"} --set-param depth=2 > log 2>&1
    after=$(git diff --cached --name-only | tr '\n' ' ')
    echo "dvc exp run $1 -- staged before: ${before}; after: ${after:-nothing}"
    sed 's/^/    /' log
    if [ "$after" != "$2" ]; then
        echo "CHANGED: expected '${2:-nothing}' to be staged afterwards"
        status=1
    fi
    if ! grep -q 'line for later' note.txt; then
        echo "CHANGED: a line of the working file is lost"
        status=1
    fi
    cd ..
}
try "" ""
try --temp "new.txt note.txt "
exit $status
