# For the polled verbs: four-letter words over a socket, no process started. Sourced by bash.

# ask WORD [PATTERN]: the lines of the server's answer, in the array `answer`. Returns 1 when nothing listens, 2 when nothing answers.
# With a PATTERN, grep picks the lines: bash reads a socket byte by byte, which is too dear for a long answer.
ask() {
    local line
    answer=()
    { exec 3<>/dev/tcp/127.0.0.1/2181; } 2>/dev/null || return 1
    printf %s "$1" >&3
    if [[ -n ${2-} ]]; then
        mapfile -t answer < <(timeout 2 grep -E "$2" <&3)
    else
        # A line without its end is the last; after a timeout there is none.
        while IFS= read -r -t 2 line <&3 || [[ $? -eq 1 && -n $line ]]; do
            answer+=("$line")
        done
    fi
    exec 3>&-
    [[ ${#answer[@]} -gt 0 ]] || return 2
}

# value KEY: of the lines `KEY: value`, `KEY=value` or `KEY<tab>value` of the answer, in `value`; empty without one.
value() {
    local line
    value=
    for line in "${answer[@]}"; do
        if [[ $line == "$1"[:=$'\t']* ]]; then
            value=${line#"$1"?}
            value=${value# }
            return
        fi
    done
}

# voters: the ids in the committed list, in `voters`; sets `member` when this member is one.
voters() {
    local line
    voters=() member=
    ask conf || return
    for line in "${answer[@]}"; do
        [[ $line =~ ^server\.([0-9]+)=.*:participant ]] && voters+=("${BASH_REMATCH[1]}")
    done
    [[ " ${voters[*]} " == *" $DB_SELF_NUMERIC_ID "* ]] && member=true
    return 0
}

result() { printf '{"output":%s}\n' "$1" >"$DB_RESULT"; }
