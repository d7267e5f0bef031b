# What the verbs share. Invariant: secrets go from file to file or through standard input, never through arguments, environment or output.
# shellcheck shell=sh disable=SC2034,SC2086
set -eu
umask 077
export LC_ALL=C PATH="/usr/lib/postgresql/15/bin:$PATH"
DATA=/data/db RUN=/run/db
STALE=$DATA.stale # exists while the data is too old to rejoin and is to be cloned again
# The own replication slot. Member ids have no underscores, slots have no dashes.
slot() { printf %s "$DB_SELF_ID" | tr -- - _; }
export PGHOST=$RUN PGUSER=postgres PGDATABASE=postgres PGCONNECT_TIMEOUT=2
export PGOPTIONS="-c search_path=pg_catalog -c statement_timeout=$((DB_DEADLINE_SECONDS * 1000 - 500))"

# passwd: initdb and peer authentication want a name for the uid; an arbitrary one gets it from a file. False where it has the name.
passwd() {
    [ "$(id -un 2>/dev/null)" != postgres ] && echo "postgres:x:$(id -u):$(id -g)::$RUN/home:/bin/sh" >"$DB_SCRATCH/passwd"
}

# fail EXIT Code MESSAGE: ends the verb. `also` may hold more members of the result.
fail() {
    text=$(printf %s "$3" | tr '\n\t' '  ' | sed 's/[\\"]/\\&/g')
    printf '{%s"error":{"code":"%s","message":"%s"}}\n' "${also-}" "$2" "$text" >"$DB_RESULT"
    echo "$DB_VERB: $2: $3" >&2
    exit "$1"
}
answer() { printf '{"changed":%s%s}\n' "$1" "${2+,\"output\":$2}" >"$DB_RESULT"; exit 0; }
pending() { echo "{\"progress\":{\"fraction\":0,\"note\":\"$1\"}}" >"$DB_RESULT"; exit 10; }
later() { also='"retry":{"afterSeconds":2},' && fail 11 "$1" "$2"; }

# sql: runs standard input in the engine. $MEMBERS is a table expression; one that leaves counts until its slot is gone.
sql() {
    psql -XAtq -v ON_ERROR_STOP=1 -v self="$DB_SELF_ID" -v subject="$DB_SUBJECT_ID" -v durability="$DB_DURABILITY" \
        -v members="$(cat "$DB_MEMBERS")" -v config="$(cat "$DB_CONFIG")" -v asked="${DB_PARAM_MEMBERS-}" -v kind="${DB_PARAM_KIND-}" -v changed="${changed-false}" -f -
}
MEMBERS="members as (select f[1] as id, translate(f[1], '-', '_') as slot, f[8] as state,
    f[8] = 'joined' or f[8] = 'leaving' and translate(f[1], '-', '_') in (select slot_name from pg_replication_slots) as joined from (select string_to_array(line, chr(9)) as f from string_to_table(:'members', chr(10)) line where line <> '') lines)"
# The timeline of the own data: that of the newest segment. The control file learns of a new timeline only at the next checkpoint.
TIMELINE="(select max(('x' || left(name, 8))::bit(32)::int) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$')"
# The host that WAL comes from. A receiver whose request is refused says `streaming` too, for a moment.
SENDER="(select sender_host from pg_stat_wal_receiver join pg_stat_activity using (pid) where status = 'streaming' and backend_start < clock_timestamp() - interval '0.3 s')"

secret() { [ -s "$DB_SECRETS/$1/current" ] && cat "$DB_SECRETS/$1/current" || fail 20 MissingSecret "the secret $1 is missing or empty"; }
# leader_conninfo: how to reach the leader as the replication user. The password file is private to this call.
leader_conninfo() {
    password=$(secret replication) || exit $?
    printf '*:*:*:replication:%s\n' "$password" >"$DB_SCRATCH/passfile"
    echo "host=$DB_LEADER_NAME port=5432 user=replication passfile=$DB_SCRATCH/passfile connect_timeout=2 application_name=$DB_VERB"
}
# leader STATEMENT…: runs them on the leader. SQL and replication commands work in such a connection.
leader() {
    conninfo=$(leader_conninfo) || exit $?
    for statement; do set -- "$@" -c "$statement"; shift; done
    psql -XAtq -v ON_ERROR_STOP=1 -d "$conninfo dbname=postgres replication=database" "$@"
}

# alone: one call at a time works on the data, and none while an engine does; all processes of an engine work in its directory.
alone() {
    exec 9>$RUN/.lock
    flock -n 9 || fail 12 Busy "another call works on $DATA"
    ! running || fail 13 EngineRunning "processes of PostgreSQL are alive on $DATA; stop them first"
}
running() { for process in /proc/[0-9]*; do [ "$(readlink "$process/cwd")" != "$DATA" ] || return 0; done 2>/dev/null; return 1; }

# place DIRECTORY: makes a complete directory the data, durably and in one step.
place() {
    [ ! -e $DATA ] || rmdir $DATA 2>/dev/null || fail 22 DataThere "$DATA has files that no verb of this image left; they are kept"
    sync -f "$1" && mv "$1" $DATA && sync /data
}

clamp() { echo $(($1 < $2 ? $2 : $1 > $3 ? $3 : $1)); }
# conf [MEMBER…]: postgresql.conf for the wanted state; the MEMBERs confirm no writes.
conf() {
    [ "$DB_MEMORY_BYTES" -eq 0 ] || [ "$DB_MEMORY_BYTES" -ge 134217728 ] || fail 20 TooLittleMemory "$DB_MEMORY_BYTES bytes of memory; PostgreSQL needs 134217728"
    memory=$((DB_MEMORY_BYTES > 0 ? DB_MEMORY_BYTES / 1048576 : 1024))
    volume=$(tr -d ' \n' <"$DB_REQUEST" | sed -n 's/.*"volumes":{[^}]*"data":\([0-9]*\).*/\1/p')
    volume=$((${volume:-8589934592} / 1048576))
    # Under Quorum, with the leader, a majority of the joined members has a write on disk before it is answered.
    names=$([ "$DB_DURABILITY" != Quorum ] || awk -F '\t' -v self="$DB_SELF_ID" -v gone=" $* " '$8 ~ /^(joined|leaving)$/ && !index(gone, " " $1 " ") { n++
        if ($1 != self) list = list (list ? ", " : "") "\"" $1 "\"" } END { if (list && n > 1) printf "ANY %d (%s)", n / 2, list }' "$DB_MEMBERS")
    settings=$(awk -f /db/settings.awk /db/manifest.yaml "$DB_CONFIG" 2>&1) || fail 20 InvalidConfig "$settings"
    follow=
    [ -z "$DB_LEADER_NAME" ] || [ "$DB_LEADER_ID" = "$DB_SELF_ID" ] || follow="host=$DB_LEADER_NAME port=5432 user=replication passfile=$RUN/passfile application_name=$DB_SELF_ID connect_timeout=2 tcp_user_timeout=10000"
    cat <<CONF
shared_buffers = $(clamp $((memory / 4)) 16 16384)MB
effective_cache_size = $((memory * 5 / 8))MB
work_mem = $(clamp $((memory / 256)) 1 64)MB
maintenance_work_mem = $(clamp $((memory / 16)) 16 1024)MB
max_wal_size = $(clamp $((volume / 8)) 128 4096)MB
min_wal_size = 128MB
max_slot_wal_keep_size = $(clamp $((volume / 4)) 128 65536)MB
random_page_cost = 1.1
# Restart settings stand here even with their default: PostgreSQL does not forget a waiting value that is merely taken out.
autovacuum_max_workers = 3
max_connections = 100
max_locks_per_transaction = 64
max_prepared_transactions = 0
max_worker_processes = 8
shared_preload_libraries = ''
wal_level = replica
$settings
listen_addresses = '*'
port = 5432
unix_socket_directories = '$RUN'
unix_socket_permissions = 0700
hba_file = '/db/pg_hba.conf'
ident_file = '/dev/null'
cluster_name = '$DB_SELF_ID'
superuser_reserved_connections = 5
password_encryption = scram-sha-256
jit = off
hot_standby = on
wal_log_hints = on
max_wal_senders = 20
max_replication_slots = 20
wal_sender_timeout = 10s
wal_receiver_timeout = 10s
wal_retrieve_retry_interval = 200ms
recovery_target_timeline = latest
restart_after_crash = off
log_destination = stderr
log_line_prefix = '%m [%p] %q%u@%d '
primary_slot_name = '$(slot)'
primary_conninfo = '$follow'
synchronous_commit = on
synchronous_standby_names = '$names'
CONF
}

# checked [MEMBER…]: writes `conf` to $DB_SCRATCH/postgresql.conf, when PostgreSQL itself finds no fault with it.
checked() {
    conf "$@" >"$DB_SCRATCH/postgresql.conf"
    : >"$DB_SCRATCH/postgresql.auto.conf"
    postgres -D "$DB_SCRATCH" -c config_file="$DB_SCRATCH/postgresql.conf" -C port >/dev/null 2>"$DB_SCRATCH/errors" ||
        fail 20 InvalidConfig "PostgreSQL refuses the settings: $(sed -n '1s/.*[A-Z]:  //p' "$DB_SCRATCH/errors")"
}
# configure [MEMBER…]: brings the running engine to `conf` and sets `changed`.
configure() {
    exec 8>$RUN/.configuring && flock -w 5 8 || fail 12 Busy "another call changes the configuration"
    checked "$@" $(echo "with $MEMBERS select id from members where state = 'leaving' and not joined" | sql)
    cmp -s "$DB_SCRATCH/postgresql.conf" $RUN/postgresql.conf && [ ! -e $RUN/.reload ] && return 0
    before=$(echo 'select pg_conf_load_time()' | sql)
    : >$RUN/.reload # until it is done, for the call after a killed one
    cp "$DB_SCRATCH/postgresql.conf" $RUN/.new && mv $RUN/.new $RUN/postgresql.conf
    echo 'select pg_reload_conf()' | sql >/dev/null
    until [ "$(echo 'select pg_conf_load_time()' | sql)" != "$before" ]; do sleep 0.1; done
    rm $RUN/.reload
    changed=true
}

# Slots are not replicated: the leader makes one for every member that follows or will.
slots() {
    made=$(sql <<SQL
with $MEMBERS select count(pg_create_physical_replication_slot(slot, true)) from members
where state in ('joining', 'joined') and id <> :'self' and not pg_is_in_recovery() and slot not in (select slot_name from pg_replication_slots)
SQL
    )
    [ "$made" = 0 ] || changed=true
}
