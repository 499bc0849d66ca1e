#!/usr/bin/env bash
# Question: does a file that DVC tracks come back executable after `dvc checkout`?
# One would think: the same answer for each file; as in git, yes.
# What happens: a file that was added by itself keeps its executable bit; a file inside a folder that was added as a
# whole loses it.
# Versions: dvc 3.67.1.
# Why it matters: a pipeline with a tracked folder of programs works where it was written and ends with "Permission
# denied" in every fresh copy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet dvc==3.67.1
export HOME=$folder DVC_NO_ANALYTICS=true DVC_SITE_CACHE_DIR=$folder/site PATH=$folder/env/bin:$PATH
pip list 2>/dev/null | grep -E '^dvc '
mkdir -p project/tools
cd project
dvc init --quiet --no-scm
printf '#!/bin/sh\necho alone\n' > alone.sh
printf '#!/bin/sh\necho inside\n' > tools/inside.sh
chmod +x alone.sh tools/inside.sh
dvc add --quiet alone.sh tools
rm -r alone.sh tools
dvc checkout --quiet
status=0
try() { # file, expected answer
    if [ -x "$1" ]; then seen=executable; else seen='not executable'; fi
    echo "$1 after dvc checkout: $seen"
    if [ "$seen" != "$2" ]; then
        echo "CHANGED: expected $1 to be $2"
        status=1
    fi
}
try alone.sh executable
try tools/inside.sh 'not executable'
exit $status
