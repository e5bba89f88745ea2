#!/usr/bin/env bash
# Entrypoint of our PostgreSQL test images. It honours the contract of the official image (the "How to extend" and
# "Environment Variables" sections of its page): the same variables, the same two boots, the same refusal, so that a
# test that passes here says something about postgres:15-alpine.
set -Eeuo pipefail

fail() {
  printf 'Error: %s\n' "$@" >&2
  exit 1
}

# from_file VAR [DEFAULT]: VAR, else the content of the file that VAR_FILE names, else DEFAULT.
from_file() {
  local name=$1 file="${1}_FILE" value=${2:-}
  if [[ -n ${!name:-} && -n ${!file:-} ]]; then
    fail "both $name and $file are set (but are exclusive)"
  elif [[ -n ${!name:-} ]]; then
    value=${!name}
  elif [[ -n ${!file:-} ]]; then
    value=$(<"${!file}")
  fi
  export "$name=$value"
  unset "$file"
}

# Options with which postgres prints something and exits; they need no cluster.
only_prints() {
  local option
  for option; do
    case $option in '-?' | --help | --describe-config | -V | --version) return 0 ;; esac
  done
  return 1
}

# As root: everything below the folder, for user postgres. As anybody else: what is possible.
make_folder() {
  mkdir -p "$1" || true
  chmod "$2" "$1" 2>/dev/null || true
  if ((EUID == 0)); then
    find "$1" ! -user postgres -exec chown postgres {} +
  fi
}

check_password() {
  if [[ -z $POSTGRES_PASSWORD && $POSTGRES_HOST_AUTH_METHOD != trust ]]; then
    cat >&2 <<'TEXT'
Error: Database is uninitialized and superuser password is not specified.
       You must specify POSTGRES_PASSWORD to a non-empty value for the
       superuser. For example, "-e POSTGRES_PASSWORD=password" on "docker run".

       You may also use "POSTGRES_HOST_AUTH_METHOD=trust" to allow all
       connections without a password. This is *not* recommended.
TEXT
    exit 1
  fi
  if [[ $POSTGRES_HOST_AUTH_METHOD == trust ]]; then
    echo 'WARNING: POSTGRES_HOST_AUTH_METHOD is "trust": anyone who reaches the port is let in without a password' >&2
  fi
}

# The official contract has POSTGRES_INITDB_ARGS split as a shell would, hence the eval. Every uid that initdb is to run
# as needs a name: one that has none (docker run --user 1234) gets a line in the image's world-writable passwd file.
create_cluster() {
  getent passwd "$EUID" >/dev/null ||
    printf 'postgres-%s:x:%s:%s::/var/lib/postgresql:/bin/sh\n' "$EUID" "$EUID" "$(id -g)" >>/etc/passwd
  local -a waldir=()
  [[ -z ${POSTGRES_INITDB_WALDIR:-} ]] || waldir=(--waldir "$POSTGRES_INITDB_WALDIR")
  local -a more
  eval "more=($POSTGRES_INITDB_ARGS)"
  initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") "${more[@]}" "${waldir[@]}"
  local method
  method=${POSTGRES_HOST_AUTH_METHOD:-$(postgres -C password_encryption "$@")}
  printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
}

run_sql() {
  PGHOST='' PGHOSTADDR='' psql -v ON_ERROR_STOP=1 --no-psqlrc --no-password --username "$POSTGRES_USER" \
    --dbname "${database:-$POSTGRES_DB}" "$@"
}

create_database() {
  local database=postgres
  local query="SELECT 'CREATE DATABASE ' || quote_ident(:'name')
               WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \\gexec"
  run_sql --set name="$POSTGRES_DB" <<<"$query"
}

run_init_files() {
  local file
  for file; do
    case $file in
      *.sh)
        if [[ -x $file ]]; then
          echo "$0: running $file"
          "$file"
        else
          echo "$0: sourcing $file"
          set +u # the official entrypoint sources them without it
          # shellcheck source=/dev/null
          . "$file"
          set -u
        fi
        ;;
      *.sql) echo "$0: running $file" && run_sql -f "$file" ;;
      *.sql.gz) echo "$0: running $file" && gunzip -c "$file" | run_sql ;;
      *) echo "$0: ignoring $file" ;;
    esac
  done
}

[[ ${1:-} != -* ]] || set -- postgres "$@"

if [[ ${1:-} == postgres ]] && ! only_prints "$@"; then
  from_file POSTGRES_PASSWORD
  from_file POSTGRES_USER postgres
  from_file POSTGRES_DB "$POSTGRES_USER"
  from_file POSTGRES_INITDB_ARGS
  : "${POSTGRES_HOST_AUTH_METHOD:=}"

  make_folder "$PGDATA" 0700
  make_folder /var/run/postgresql 03775
  [[ -z ${POSTGRES_INITDB_WALDIR:-} ]] || make_folder "$POSTGRES_INITDB_WALDIR" 0700
  if ((EUID == 0)); then
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
  fi

  if [[ -s $PGDATA/PG_VERSION ]]; then
    printf '\nPostgreSQL Database directory appears to contain a database; Skipping initialization\n\n'
  else
    check_password
    create_cluster "${@:2}"
    # The first boot listens on the unix socket only: nobody outside can take it for the ready server.
    export PGPASSWORD="${PGPASSWORD:-$POSTGRES_PASSWORD}"
    PGUSER="${PGUSER:-$POSTGRES_USER}" pg_ctl -D "$PGDATA" -w start \
      -o "$(printf '%q ' "${@:2}" -c listen_addresses='' -p "${PGPORT:-5432}")"
    create_database
    shopt -s nullglob
    run_init_files /docker-entrypoint-initdb.d/*
    PGUSER="${PGUSER:-postgres}" pg_ctl -D "$PGDATA" -m fast -w stop
    unset PGPASSWORD
    printf '\nPostgreSQL init process complete; ready for start up.\n\n'
  fi
fi

exec "$@"
