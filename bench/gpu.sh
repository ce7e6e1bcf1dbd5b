#!/usr/bin/env bash
# One check of onecard on a CUDA machine that needs no network: build, tests marked gpu, figures; one table last.
# Under nine minutes: what does not fit is left out and named. See `--help`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
usage: bench/gpu.sh [--bundle FOLDER] [--out FOLDER] [--limit SECONDS] [--python EXE] [--dry]
  --bundle FOLDER   what `make gpu-bundle` made; nothing is fetched from the network then
  --out FOLDER      for gpu.json, pytest.txt and build.log (default bench/out/gpu)
  --limit SECONDS   for everything together (default 530)
  --python EXE      use this Python as it is; nothing is installed or compiled
  --dry             no card: tests are only collected, shapes are small, everything runs on the CPU
Time is shared in this order: up to 360 s build, up to 120 s tests, figures in what is left.
Exits with 1 when tests or figures failed, after the table.
TEXT
}

bundle='' out=bench/out/gpu limit=530 python='' dry=''
while [ $# -gt 0 ]; do
  case "$1" in
    --bundle) bundle=$(realpath "$2"); shift ;;
    --out) out=$2; shift ;;
    --limit) limit=$2; shift ;;
    --python) python=$2; shift ;;
    --dry) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
mkdir -p "$out"
out=$(realpath "$out")
export XDG_DATA_HOME="$out/data"  # the first estimates are not those that an earlier run learned
rm -rf "$XDG_DATA_HOME"

least=15  # seconds: what has no more is left out
left() { echo $((limit - SECONDS)); }
within() { echo $(($(left) < 1 ? 1 : $(left) < $1 ? $(left) : $1)); }  # 0 would be no limit to `timeout`
say() { echo "gpu.sh [${SECONDS}s]: $*" >&2; }

card='no card'
if [ -z "$dry" ]; then
  PATH=$PATH:/usr/local/cuda/bin
  command -v nvidia-smi >/dev/null || { say 'no nvidia-smi. hint: --dry runs without a card'; exit 1; }
  command -v nvcc >/dev/null || { say 'no nvcc. hint: put the CUDA toolkit on the PATH'; exit 1; }
  card=$(nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version --format=csv,noheader | head -n 1)
  card="$card, nvcc $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')"
fi
say "$card"

build='not built here'
if [ -z "$python" ]; then
  if [ -n "$bundle" ]; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS="$bundle/wheels"
  fi
  python=$PWD/.venv/bin/python
  before=$SECONDS
  timeout "$(within 360)" python3 deploy/install.py gpu >&2 || { tail -n 40 .venv/*.log >&2; exit 1; }
  cp .venv/llama-build.log "$out/build.log" 2>/dev/null || true
  if "$python" -c 'import torch' 2>/dev/null; then
    timeout 60 "$python" -m pip install --quiet --disable-pip-version-check --editable '.[bnb]' >&2 ||
      say 'bitsandbytes could not be installed: its tests are skipped'
  else
    say 'no PyTorch on this machine: the tests of the bnb backend are skipped'
  fi
  build="$((SECONDS - before)) s"
fi

status=0
tests='left out for want of time'
if [ "$(left)" -gt $least ]; then
  say 'tests marked gpu'
  tests='' code=0
  timeout "$(within 120)" "$python" -m pytest -m gpu ${dry:+--collect-only} -rs tests/gpu >"$out/pytest.txt" 2>&1 || code=$?
  if [ $code -ne 0 ]; then
    status=1 tests="failed (exit $code): "
    say 'tests failed: pytest.txt'
  fi
  tests=$tests$(tail -n 1 "$out/pytest.txt")
fi

if [ "$(left)" -le $least ]; then
  echo "$card; build $build; tests $tests; figures left out for want of time"
  exit $status
fi
say 'figures'
models=${dry:+$out/models}
timeout "$(within "$limit")" "$python" -m bench.gpu --out "$out" --models "${models:-bench/out/gpu-models}" --seconds "$(($(left) - least))" \
  --card "$card" --build "$build" --tests "$tests" ${dry:+--tiny} || status=1
exit $status
