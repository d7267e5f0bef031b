# Shared by the verbs. POSIX sh. Every verb reads the engine's state first and ends with one of the functions that answer.
# Nothing secret is ever an argument of a program: passwords go from their file to redis-cli's standard input.
DATA=/data/db           # the engine's folder
META=/data/meta         # ours: the newest epoch seen, and the mark of a founding that is not finished
STAMP=/run/db/promoted  # "EPOCH RUN_ID" of the promotion of the running process; a restarted engine has another run id
NOBODY='127.0.0.1 1'    # "replicate from here" that never answers: the engine stays read-only

quote() { printf '"%s"' "$(printf '%s' "$1" | tr '\000-\037' ' ' | sed 's/[\\"]/\\&/g')"; }
answer() { printf '%s\n' "$1" > "$DB_RESULT.new" && mv "$DB_RESULT.new" "$DB_RESULT"; }
done_() { answer "{\"changed\": ${1:-false}${2:+, \"output\": $2}}"; exit 0; }
fail() { answer "{\"error\": {\"code\": $(quote "$2"), \"message\": $(quote "$3")}}"; exit "$1"; }
pending() { answer "{\"progress\": {\"fraction\": $1, \"note\": $(quote "$2")}}"; exit 10; }
later() { answer "{\"retry\": {\"afterSeconds\": $1}, \"warnings\": [$(quote "$2")]}"; exit 11; }
refuse() { answer "{\"blockers\": [{\"object\": $(quote "$1"), \"reason\": $(quote "$2"), \"hint\": $(quote "$3")}]}"; exit 22; }

# setting KEY DEFAULT: the user's value, or the default.
setting() {
  awk -v key="$1" -v value="$2" 'index($0, key "=") == 1 { value = substr($0, length(key) + 2) } END { print value }' "$DB_CONFIG"
}

# bytes SIZE: 64MB, 64Mi, 1g as a number; units are binary, which Redis reads otherwise.
bytes() {
  printf '%s\n' "$1" | awk '{ unit = tolower($0); gsub(/[^a-z]/, "", unit); unit = substr(unit, 1, 1)
    printf "%.0f\n", $0 * 1024 ^ (unit == "" ? 0 : index("kmgt", unit)) }'
}

# joined: number of members that are part of the group, this one included when it is.
joined() {
  awk -F '\t' -v component="$DB_SELF_COMPONENT" -v shard="$DB_SELF_SHARD" \
    '$5 == component && $6 == shard && $8 == "joined" { n++ } END { print n + 0 }' "$DB_MEMBERS"
}

# needed: copies without which the leader takes no writes. Two members could not lose one otherwise, so it starts with three.
needed() {
  if [ "$(joined)" -ge 3 ] && [ "$DB_PLAN_TARGET" -ge 3 ]; then echo 1; else echo 0; fi
}

# settings: every setting with the wanted value, one `key value` a line.
settings() {
  room=$((DB_MEMORY_BYTES - 33554432))
  [ "$DB_MEMORY_BYTES" -eq 0 ] && half=0 || half=$((room / 2))
  while read -r key kind fallback; do
    value=$(setting "$key" "$fallback")
    case $kind in bytes) value=$(bytes "$value") ;; esac
    case $key$value in *[!A-Za-z0-9_\$-]*) fail 20 InvalidSetting "The setting $key has a character that it may not have." ;; esac
    if [ "$key" = maxmemory ] && [ "$DB_MEMORY_BYTES" -gt 0 ] && [ "$value" -gt "$room" ]; then
      fail 20 InvalidSetting "maxmemory $value leaves less than 32 MiB of the member's $DB_MEMORY_BYTES bytes: lower it or raise the memory limit."
    fi
    printf '%s %s\n' "$key" "${value:-\"\"}"
  done <<EOF
maxmemory bytes $half
maxmemory-policy text noeviction
appendfsync text everysec
maxclients text 10000
timeout text 0
slowlog-log-slower-than text 10000
notify-keyspace-events text
repl-backlog-size bytes 16777216
io-threads text 1
databases text 16
EOF
}

# redis HOST SECONDS: sends the commands of standard input as the administrator; prints the replies. Returns 0 · 1 an error reply
# or no connection · 124 no answer in time. The first reply, OK to the password, is cut off.
redis() {
  read -r password < "$DB_SECRETS/admin/current" || [ -n "$password" ]
  replies=$({ printf 'AUTH admin %s\n' "$password"; cat; } | timeout "$2" redis-cli -e -h "$1" 2>&1) && code=0 || code=$?
  printf '%s\n' "$replies" | sed 's/\r$//; 1{/^OK$/d}'
  return "$code"
}

# look [HOST]: reads the state of an engine into variables named like the fields of INFO.
look() {
  [ -r "$DB_SECRETS/admin/current" ] || fail 20 MissingSecret "The secret admin has no current version."
  role='' run_id='' loading='' master_host='' master_link_status='' master_sync_in_progress=0 slave_repl_offset=0 connected_slaves=0
  text=$(echo 'INFO server replication persistence memory' | redis "${1:-localhost}" 3) && looked=0 || looked=$?
  while IFS=: read -r key value; do
    case $key in
      role | run_id | loading | master_host | master_link_status | master_sync_in_progress | slave_repl_offset | connected_slaves | \
        master_replid | master_repl_offset | min_slaves_good_slaves | aof_last_write_status | used_memory | maxmemory | maxmemory_policy)
        eval "$key=\$value"
        ;;
    esac
  done <<EOF
$text
EOF
  [ -n "$role" ]
}

# must_look: as look, for verbs that cannot go on without an answer.
must_look() {
  [ -r "$DB_SECRETS/admin/current" ] || fail 20 MissingSecret "The secret admin has no current version."
  look && return
  case $text in
    *refused*) fail 13 EngineNotRunning "Nothing listens on port 6379 of $DB_SELF_ID." ;;
    *WRONGPASS* | *NOAUTH*) fail 30 Unauthorized "The engine does not accept the password of admin: restart the member." ;;
    *) fail 31 NoAnswer "The engine of $DB_SELF_ID does not answer INFO." ;;
  esac
}

# mark: name of a function library that says whose data this is. It travels with the data and survives FLUSHALL.
mark() { printf 'backlot_%s' "$DB_CLUSTER_UID" | tr -c 'A-Za-z0-9' _; }

# holds HOST: whether an engine holds this cluster's data.
holds() { echo "FUNCTION LIST LIBRARYNAME $(mark)" | redis "$1" 3 | grep -q "$(mark)"; }

# promoted: whether the running process was promoted by us; sets promoted_epoch.
promoted() {
  promoted_epoch='' stamped=''
  if [ -r "$STAMP" ]; then read -r promoted_epoch stamped < "$STAMP" || true; fi
  [ "$role" = master ] && [ "$stamped" = "$run_id" ]
}

# see_epoch: refuses an epoch older than one seen, on this volume, and keeps the newest. Sets epoch and seen.
see_epoch() {
  epoch=${DB_PARAM_EPOCH:-$DB_EPOCH} seen=0
  mkdir -p "$META"
  if [ -s "$META/epoch" ]; then read -r seen < "$META/epoch"; fi
  [ "$epoch" -ge "$seen" ] || fail 23 StaleEpoch "Epoch $epoch is older than epoch $seen, which $DB_SELF_ID has seen."
  if [ "$epoch" -gt "$seen" ]; then
    echo "$epoch" > "$META/epoch.new"
    sync "$META/epoch.new"
    mv "$META/epoch.new" "$META/epoch"
    sync "$META"
  fi
}

# role_output: the output of `role`. An engine with append-only files forgets its position at a restart: 0 or 1 is not known.
role_output() {
  case $role in
    master) promoted && name=leader || name=unknown; writable=true offset=$master_repl_offset ;;
    *) name=follower writable=false offset=$slave_repl_offset promoted_epoch='' ;;
  esac
  position=
  if [ "$offset" -gt 1 ]; then position=", \"position\": {\"offset\": $offset, \"history\": \"$master_replid\"}"; fi
  printf '{"role": "%s", "writable": %s%s%s}' "$name" "$writable" "${promoted_epoch:+, \"term\": $promoted_epoch}" "$position"
}
