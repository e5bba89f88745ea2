# Runs as the first process of a container, in front of the image's own entrypoint, and ends the container when
# nobody needs it: as long as somebody is connected to PostgreSQL it lives, and no sidecar has to watch it.
#
#   $1  seconds that it may take until the first connection
#   $2  seconds that it may live with nobody connected after that; the file $grant overrides it
#   $3  a folder with a ready cluster to start from a copy of, or nothing
#   $4… the image's entrypoint and command
first=$1 idle=$2 seed=$3 grant=/dev/shm/pgsandbox-grant hold=/dev/shm/pgsandbox-hold
shift 3

[ -z "$seed" ] || { mkdir -p "$PGDATA" && cp -a "$seed/." "$PGDATA/"; } || exit 1

"$@" &
server=$!

# A kept cluster has no password: the superuser gets one of this start, through the socket inside the container.
give_password() {
    until psql -X -q -U postgres -d postgres -c "ALTER ROLE postgres PASSWORD '$PGSANDBOX_VERIFIER'" 2>/dev/null; do
        kill -0 "$server" 2>/dev/null || return
        sleep 0.02
    done
}
[ -z "$PGSANDBOX_VERIFIER" ] || give_password &
trap 'kill -INT "$server" 2>/dev/null' INT TERM

# Whether a socket of port 5432 is in state $1 in the kernel's own tables: 01 is established, 0A listens.
is_in_state() {
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | while read -r _ ours _ state _; do
        case $ours/$state in *:1538/$1) echo yes && break ;; esac
    done
}

# Seconds that it may be quiet from now on. Whoever waits for a start connects as soon as PostgreSQL listens.
limit() {
    if [ -r "$grant" ]; then cat "$grant"
    elif [ -e "$hold" ]; then echo "$first"
    elif [ -n "$seen" ]; then echo "$idle"
    elif [ -n "$listens" ]; then echo 10
    else echo "$first"; fi
}

# Five looks a second until somebody was seen, who may be killed at once; then one a second.
seen='' listens='' quiet=0 pause=0.2 step=1
while kill -0 "$server" 2>/dev/null || [ -e "$hold" ]; do
    if [ -n "$(is_in_state 01)" ]; then
        seen=yes quiet=0 pause=1 step=5
    elif [ -z "$listens$seen" ] && [ -n "$(is_in_state 0A)" ]; then
        listens=yes quiet=0
    else
        quiet=$((quiet + step))
        # The container ends with its first process, and everything in it at once; its data is on a tmpfs anyway.
        [ "$quiet" -le "$(($(limit) * 5))" ] || exit 0
    fi
    sleep "$pause"
done
wait "$server"
