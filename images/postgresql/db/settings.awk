# Turns the user's settings (DB_CONFIG) into lines of postgresql.conf. First file: the manifest, one setting per line; second: DB_CONFIG.
# The standard's sizes (64Mi, 65536) and times (5m) are not PostgreSQL's; immutable settings belong to initdb.
FNR == NR {
    if ($0 ~ /^  [a-z_]+: +\{type: /) {
        key = $1; sub(/:$/, "", key); type[key] = $3; sub(/,$/, "", type[key])
        if ($0 ~ /apply: immutable/) type[key] = "immutable"
    }
    next
}
{
    at = index($0, "="); key = substr($0, 1, at - 1); value = substr($0, at + 1)
    if (!(key in type)) { print "the image has no setting `" key "`" >"/dev/stderr"; exit 20 }
    if (type[key] == "immutable") next
    if (type[key] == "bytes") {
        match(value, /^[0-9.]+/); unit = toupper(substr(value, RLENGTH + 1)); gsub(/[ IB]/, "", unit)
        value = substr(value, 1, RLENGTH) (unit == "K" ? "k" : unit) "B"
    }
    if (type[key] == "duration") { gsub(/ /, "", value); sub(/m$/, "min", value) }
    gsub(/\\/, "\\\\", value); gsub(/'/, "''", value)
    print key " = '" value "'"
}
