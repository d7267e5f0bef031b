# Shared by the verbs. POSIX sh, with curl and jq. A token goes from its file to curl's standard input, never into arguments.
DATA=/data/consul
MARK=$DATA/cluster # written when the member is a full one; holds the cluster's uid

answer() { printf '%s\n' "$1" > "$DB_RESULT.new" && mv "$DB_RESULT.new" "$DB_RESULT"; }
text() { jq -n --arg text "$1" '$text'; }
done_() { answer "{\"changed\": $1${2:+, \"output\": $2}}"; exit 0; }
fail() { answer "{\"error\": {\"code\": \"$2\", \"message\": $(text "$3")}}"; exit "$1"; }
pending() { answer "{\"progress\": {\"fraction\": 0.5, \"note\": $(text "$1")}}"; exit 10; }
later() { answer "{\"retry\": {\"afterSeconds\": 3}, \"error\": {\"code\": \"NotNow\", \"message\": $(text "$1")}}"; exit 11; }
refuse() { answer "{\"blockers\": [{\"object\": $(text "$1"), \"reason\": $(text "$2"), \"hint\": $(text "$3")}]}"; exit 22; }
state() { done_ false "{\"state\": \"$1\", \"message\": $(text "$2")}"; }
request() { jq -L /db/lib "$@" "$DB_REQUEST"; }

# api HOST METHOD PATH [OPTION…]: calls a server with the token of $ACCOUNT; prints the body, fails when the server says no.
api() {
  host=$1 method=$2 path=$3
  shift 3
  { printf 'X-Consul-Token: ' && cat "$DB_SECRETS/${ACCOUNT:-admin}/current"; } |
    curl -sS --fail-with-body -m 4 -H @- -X "$method" "$@" "http://$host:8500/v1/$path"
}

# others: names of the members that are to stay, without this one and the subject.
others() {
  awk -F '\t' -v component="$DB_SELF_COMPONENT" -v shard="$DB_SELF_SHARD" -v self="$DB_SELF_ID" -v subject="$DB_SUBJECT_ID" \
    '$5 == component && $6 == shard && $8 == "joined" && $1 != self && $1 != subject { print $3 }' "$DB_MEMBERS"
}

# look HOST…: the servers as the leader sees them, through the first host that knows one. Sets via and servers.
look() {
  for via; do
    if servers=$(api "$via" GET operator/raft/configuration 2> /dev/null) && seen=$(api "$via" GET operator/autopilot/health 2> /dev/null || [ $? = 22 ]); then
      servers=$(printf '%s\n' "$servers" "$seen" | jq -cs '.[1].Servers as $seen | .[0] | .Servers |= map(.ID as $id | . + (first($seen[]? | select(.ID == $id)
        | {Healthy, Name}) // {Healthy: false, Name: .Node}))') && return
    fi
  done
  return 1
}
about() { printf '%s\n' "$servers" | jq -r "$@"; }

# keeps_quorum ID: whether the voters without this one have a healthy majority.
keeps_quorum() { about -e --arg id "$1" '[.Servers[] | select(.Voter and .ID != $id)] | length > 0 and ([.[] | select(.Healthy)] | length) > length / 2' > /dev/null; }

own_id() { cat "$DATA/node-id" 2> /dev/null; }

# remove ID NAME: ends a membership through $via. The name is forgotten as well, unless another server has taken it.
remove() {
  api "$via" DELETE "operator/raft/peer?id=$1" || [ $? = 22 ] || later "no answer from $via"
  api "$via" PUT "agent/force-leave/$2?prune" > /dev/null || true
}
