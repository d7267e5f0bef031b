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

# later SECONDS [settle|newAddress|otherMember]: not now.
later() {
  answer "{\"retry\": {\"afterSeconds\": $1, \"need\": \"${2:-settle}\"}}"
  exit 11
}

# refuse OBJECT REASON HINT: it would lose data or service; names the user's object and what to do.
refuse() {
  answer "{\"blockers\": [{\"object\": $(quote "$1"), \"reason\": $(quote "$2"), \"hint\": $(quote "$3")}]}"
  exit 22
}

# members COMPONENT SHARD: ids and names of the group's members that are, or are becoming, part of it, one `id name` a line.
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

# ---- etcd, by its JSON gateway. 64-bit ids are text there. ----
url="http://$DB_SELF_NAME:2380"
home=/data/etcd

# login HOST: sets `token`, as root. The password goes through a pipe; printf is the shell's own. Needs a quorum.
login() {
  token=$(printf '{"name":"root","password":"%s"}' "$(cat "$(secret root)")" |
    curl -s -m 5 --data-binary @- "http://$1:2379/v3/auth/authenticate" | jq -r '.token // empty') && [ -n "$token" ]
}

# call HOST PATH BODY: the answer, an `{"error": …}` too; `token` may be empty while there are no accounts.
call() {
  printf 'header = "Authorization: %s"\n' "$token" | curl -s -m 10 -K - -d "$3" "http://$1:2379/v3/$2"
}

# find_server: sets `server` to another member through which the membership can be changed, and `list` to the members.
find_server() {
  for server in "$DB_VIA_NAME" "$DB_LEADER_NAME" \
    $(awk -F '\t' -v self="$DB_SELF_ID" '$1 != self && $8 == "joined" { print $3 }' "$DB_MEMBERS") "$@"; do
    [ -n "$server" ] && [ "$server" != "$DB_SELF_NAME" ] && login "$server" || continue
    list=$(call "$server" cluster/member/list '{}') && printf '%s' "$list" | jq -e .members >/dev/null && return 0
  done
  return 1
}

# member JQ-CONDITION [JQ-ARGUMENTS…]: `id started|unstarted voter|learner` of the member in `list`.
member() {
  condition=$1; shift
  printf '%s' "$list" | jq -r "$@" ".members[] | select($condition) | \"\\(.ID) \\(if (.name // \"\") == \"\" then \"unstarted\" else \"started\" end) \\(if .isLearner then \"learner\" else \"voter\" end)\""
}

# status: this member's own, without credentials and without a quorum.
status() { curl -s -m "${1:-3}" -d '{}' http://localhost:2379/v3/maintenance/status; }

# field NAME TEXT: a number or a word of flat JSON; cheaper than jq, for polled verbs.
field() { case $2 in *"\"$1\":"*) value=${2#*\""$1"\":}; value=${value#\"}; value=${value%%[\",\}]*} ;; *) value= ;; esac; }
