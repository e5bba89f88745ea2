# shellcheck shell=bash
# What the scripts of this folder share: how they speak, and what they ask the machine. They run on the bash 3.2 of
# macOS too, which takes an empty "${list[@]}" for an unset variable; hence ${list[@]+"${list[@]}"}.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# fail WHAT [WHY, WHAT TO DO...]
fail() {
  say "$1"
  shift
  (($# == 0)) || printf '  %s\n' "$@" >&2
  exit 1
}

has() {
  local tool
  for tool; do command -v "$tool" >/dev/null 2>&1 || return 1; done
}

debian_root() { ((EUID == 0)) && has apt-get dpkg-deb; }

# podman_answers URL: whether Podman does there. Asked by Docker's command, which the tests use, too.
podman_answers() {
  local names='{{range .Server.Components}}{{.Name}};{{end}}'
  [[ $(docker --host "$1" version --format "$names" 2>/dev/null) == *Podman* ]]
}

engine_answers() { has docker && docker version >/dev/null 2>&1; }

# with_apt APT-GET-ARGUMENT...: package lists that are missing or old are no reason to give up, and those that serve are
# no reason to fetch them anew. Quiet unless it fails.
with_apt() {
  local log ok=1
  log=$(mktemp)
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=120)
  "${apt[@]}" "$@" >"$log" 2>&1 </dev/null ||
    { "${apt[@]}" update && "${apt[@]}" "$@"; } >"$log" 2>&1 </dev/null || ok=0
  ((ok)) || tail -n 8 "$log" >&2
  rm -f "$log"
  ((ok))
}

# one_at_a_time FILE: waits for the same step of another call; released when this process ends. Where there is no flock
# there is no step that needs it either.
one_at_a_time() {
  ! has flock || { mkdir -p "${1%/*}" && exec 9>"$1" && flock 9; }
}
# What concerns the machine is locked for all checkouts.
# shellcheck disable=SC2034 # used where this is sourced
machine_locks=${TMPDIR:-/tmp}/pgsandbox-locks-$EUID
