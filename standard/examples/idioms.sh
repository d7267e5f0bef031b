# Shell idioms for verbs: copy what you need into your image (`COPY idioms.sh /db/lib.sh`) and source it with `. /db/lib.sh`.
# POSIX sh, no JSON tool needed. Every function either returns a value on standard output or ends the verb.

# quote TEXT: a JSON string with its quotes. Control characters become spaces; they have no place in a message.
quote() {
  printf '"%s"' "$(printf '%s' "$1" | tr '\000-\037' ' ' | sed 's/[\\"]/\\&/g')"
}

# answer JSON: writes the result at once or not at all, so that a verb killed half-way leaves no half file.
answer() {
  printf '%s\n' "$1" > "$DB_RESULT.new"
  mv "$DB_RESULT.new" "$DB_RESULT"
}

# done_ [true|false]: ends the verb as done. Was something changed?
done_() {
  answer "{\"changed\": ${1:-false}}"
  exit 0
}

# fail CODE ERROR_CODE MESSAGE: ends the verb with an exit code of SPEC 7.1 and a sentence for people.
fail() {
  answer "{\"error\": {\"code\": $(quote "$2"), \"message\": $(quote "$3")}}"
  exit "$1"
}

# pending FRACTION NOTE: long work goes on; the agent calls again with the same operation id.
pending() {
  answer "{\"progress\": {\"fraction\": $1, \"note\": $(quote "$2")}}"
  exit 10
}

# later SECONDS MESSAGE [settle|newAddress|otherMember]: not now, and why.
later() {
  answer "{\"retry\": {\"afterSeconds\": $1, \"need\": \"${3:-settle}\"}, \"error\": {\"code\": \"NotNow\", \"message\": $(quote "$2")}}"
  exit 11
}

# alone NAME: ends the verb as busy (12) while another call holds the lock of this name; the lock ends with the verb.
alone() {
  exec 9> "/run/db/$1.lock"
  flock -n 9 || exit 12
}

# refuse OBJECT REASON HINT: it would lose data or service; names the user's object and what to do.
refuse() {
  answer "{\"blockers\": [{\"object\": $(quote "$1"), \"reason\": $(quote "$2"), \"hint\": $(quote "$3")}]}"
  exit 22
}

# members COMPONENT SHARD: ids and names of the group's members that are wanted or there, one `id name` a line.
members() {
  awk -F '\t' -v component="$1" -v shard="$2" \
    '$5 == component && $6 == shard && $8 != "left" && $8 != "dead" { print $1, $3 }' "$DB_MEMBERS"
}

# setting KEY DEFAULT: the user's value, or the default. Keys are compared as text, values may contain `=`.
setting() {
  awk -v key="$1" -v value="$2" \
    'index($0, key "=") == 1 { value = substr($0, length(key) + 2) } END { print value }' "$DB_CONFIG"
}

# secret NAME: prints the path of the secret's current version. Hand the path on, never the content.
secret() {
  printf '%s/%s/current' "$DB_SECRETS" "$1"
}
