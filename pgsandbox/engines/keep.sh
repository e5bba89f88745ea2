# Runs as the first process of a container, in front of the image's own entrypoint, and ends the container when
# nobody needs it: as long as somebody is connected to PostgreSQL it lives, and no sidecar has to watch it.
#
#   $1  seconds that it may take until the first connection
#   $2  seconds that it may live with nobody connected after that; the file $grant overrides it
#   $3  a folder with the archives of a ready cluster to start from, or nothing
#   $4… the image's entrypoint and command
first=$1 idle=$2 seed=$3 grant=/dev/shm/pgsandbox-grant hold=/dev/shm/pgsandbox-hold
shift 3

unpack() {
    mkdir -p "$2" && tar -xf "$seed/$1.tar" -C "$2"
}
[ -z "$seed" ] || unpack start "$PGDATA" || exit 1

"$@" &
server=$!

# A kept cluster has no password: the superuser gets one of this start, through the socket inside the container.
give_password() {
    until psql -X -q -U postgres -d postgres -c "ALTER ROLE postgres PASSWORD '$PGSANDBOX_VERIFIER'" 2>/dev/null; do
        kill -0 "$server" 2>/dev/null || return
        sleep 0.02
    done
}

# What PostgreSQL starts without comes while it does, before anybody can ask for it; the template, which is only needed
# where there has to be one more clone, even later.
complete() {
    read -r template spare <"$seed/names"
    unpack rest "$PGDATA/base" || return
    [ -z "$spare" ] || unpack template "$PGDATA/base/$spare" || return
    give_password
    said=$(unpack template "$PGDATA/base/$template" 2>&1) && said=whole
    echo "${said:-tar failed}" >"$PGDATA/pgsandbox.whole"
}
[ -z "$seed" ] || complete || kill -INT "$server" &
trap 'kill -INT "$server" 2>/dev/null' INT TERM

# An established connection to port 5432 is state 01 of local address …:1538 in the kernel's own table.
connected() {
    while read -r _ ours _ state _; do
        case $ours/$state in *:1538/01) return 0 ;; esac
    done
    return 1
}

# How many connections there have ever been: who came and was killed between two looks counts, too.
opened() {
    while read -r kind _ _ _ _ _ passive _; do
        case $kind/$passive in Tcp:/[0-9]*) echo "$passive" ;; esac
    done
}

# Seconds that it may be quiet from now on; while it is held, to be copied, nobody can be connected.
limit() {
    if [ -r "$grant" ]; then cat "$grant"
    elif [ -n "$seen" ] && [ ! -e "$hold" ]; then echo "$idle"
    else echo "$first"; fi
}

seen='' quiet=0 last=0
while kill -0 "$server" 2>/dev/null || [ -e "$hold" ]; do
    now=$(opened 2>/dev/null </proc/net/snmp)
    if [ "${now:-0}" != "$last" ] || connected </proc/net/tcp || connected </proc/net/tcp6; then
        seen=yes quiet=0 last=${now:-0}
    else
        quiet=$((quiet + 1)) # half seconds
        # The container ends with its first process, and everything in it at once; its data is on a tmpfs anyway.
        [ "$quiet" -le "$(($(limit) * 2))" ] || exit 0
    fi 2>/dev/null # there may be no IPv6
    sleep 0.5
done
wait "$server"
